// The products of packed weights with AVX-512, apart from qmm.cpp: what takes longest to compile, and once is enough
// for all builds that have VNNI.
#include "cpu/qmm/avx512.h"
#include "cpu/qmm/tiled_avx512.h"
