// build FILE.spv: has the OpenCL driver compile the kernels of a SPIR-V file; what Mesa prints of them meanwhile is all
// that is wanted. Then one line: threadgroup memory in bytes.
#define CL_TARGET_OPENCL_VERSION 300
#include <CL/cl.h>
#include <stdio.h>
#include <stdlib.h>

static void check(const char* what, cl_int error) {
  if (error) {
    fprintf(stderr, "%s: OpenCL error %d\n", what, error);
    exit(1);
  }
}

int main(int argc, char** argv) {
  FILE* file = argc == 2 ? fopen(argv[1], "rb") : NULL;
  if (!file) {
    fprintf(stderr, "usage: build FILE.spv\n");
    return 2;
  }
  fseek(file, 0, SEEK_END);
  const size_t bytes = (size_t)ftell(file);
  rewind(file);
  void* spirv = malloc(bytes);
  if (!spirv || fread(spirv, 1, bytes, file) != bytes) {
    fprintf(stderr, "%s: cannot be read\n", argv[1]);
    return 1;
  }
  cl_platform_id platform;
  cl_device_id device;
  cl_int error;
  check("no platform", clGetPlatformIDs(1, &platform, NULL));
  check("no device", clGetDeviceIDs(platform, CL_DEVICE_TYPE_ALL, 1, &device, NULL));
  cl_context context = clCreateContext(NULL, 1, &device, NULL, NULL, &error);
  check("context", error);
  cl_program program = clCreateProgramWithIL(context, spirv, bytes, &error);
  check("program", error);
  error = clBuildProgram(program, 1, &device, "", NULL, NULL);
  if (error) {
    char log[4096] = "";
    clGetProgramBuildInfo(program, device, CL_PROGRAM_BUILD_LOG, sizeof log, log, NULL);
    fprintf(stderr, "%s\n", log);
  }
  check("build", error);
  cl_kernel kernel;
  cl_uint count;
  check("kernels", clCreateKernelsInProgram(program, 1, &kernel, &count));
  cl_ulong local = 0;
  check("local memory", clGetKernelWorkGroupInfo(kernel, device, CL_KERNEL_LOCAL_MEM_SIZE, sizeof local, &local, NULL));
  printf("threadgroup memory: %lu\n", (unsigned long)local);
  return 0;
}
