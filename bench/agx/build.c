// build: has the OpenCL driver compile SPIR-V files. Of each line of stdin, a folder, the kernels of its kernel.spv; what
// Mesa prints of them meanwhile is all that is wanted, and goes to the folder's stdout and stderr, with a line of the
// bytes of threadgroup memory last. Then one of stdout: 0, or 1 where the driver refused,
// or at once what is wrong with the device. One process takes many, for
// the driver needs seconds to start.
#define CL_TARGET_OPENCL_VERSION 300
#include <CL/cl.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int failed(const char* what, cl_int error) {
  if (error) fprintf(stderr, "%s: OpenCL error %d\n", what, error);
  return error != 0;
}

static void* contents(const char* path, size_t* bytes) {
  FILE* file = fopen(path, "rb");
  if (!file) return NULL;
  fseek(file, 0, SEEK_END);
  *bytes = (size_t)ftell(file);
  rewind(file);
  void* data = malloc(*bytes);
  if (data && fread(data, 1, *bytes, file) != *bytes) {
    free(data);
    data = NULL;
  }
  fclose(file);
  return data;
}

static int build(cl_context context, cl_device_id device, const char* folder) {
  char path[4096];
  size_t bytes;
  snprintf(path, sizeof path, "%s/kernel.spv", folder);
  void* spirv = contents(path, &bytes);
  if (!spirv) {
    fprintf(stderr, "%s: cannot be read\n", path);
    return 1;
  }
  cl_int error;
  cl_program program = clCreateProgramWithIL(context, spirv, bytes, &error);
  free(spirv);
  if (failed("program", error)) return 1;
  error = clBuildProgram(program, 1, &device, "", NULL, NULL);
  if (error) {
    char log[4096] = "";
    clGetProgramBuildInfo(program, device, CL_PROGRAM_BUILD_LOG, sizeof log, log, NULL);
    fprintf(stderr, "%s\n", log);
  }
  cl_kernel kernel;
  cl_uint count;
  cl_ulong local = 0;
  if (failed("build", error) || failed("kernels", clCreateKernelsInProgram(program, 1, &kernel, &count)) ||
      failed("local memory",
             clGetKernelWorkGroupInfo(kernel, device, CL_KERNEL_LOCAL_MEM_SIZE, sizeof local, &local, NULL)))
    return 1;
  printf("threadgroup memory: %lu\n", (unsigned long)local);
  clReleaseKernel(kernel);
  clReleaseProgram(program);
  return 0;
}

static int redirect(const char* folder, const char* name, int descriptor) {
  char path[4096];
  snprintf(path, sizeof path, "%s/%s", folder, name);
  const int file = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644);
  return file < 0 || dup2(file, descriptor) < 0 || close(file) < 0;
}

int main(void) {
  cl_platform_id platform;
  cl_device_id device;
  cl_int error;
  const int answer = dup(1);
  dup2(open("/dev/null", O_WRONLY), 1);  // of kernels of its own
  cl_context context = NULL;
  error = clGetPlatformIDs(1, &platform, NULL);
  if (!error) error = clGetDeviceIDs(platform, CL_DEVICE_TYPE_ALL, 1, &device, NULL);
  if (!error) context = clCreateContext(NULL, 1, &device, NULL, NULL, &error);
  if (error) {
    dprintf(answer, "no device: OpenCL error %d\n", error);
    return 1;
  }
  char folder[2048];
  while (fgets(folder, sizeof folder, stdin)) {
    folder[strcspn(folder, "\n")] = 0;
    const int bad = redirect(folder, "stdout", 1) || redirect(folder, "stderr", 2) || build(context, device, folder);
    fflush(NULL);
    if (dprintf(answer, "%d\n", bad) < 0) return 1;
  }
  return 0;
}
