// The NVIDIA shim on the emulator's threads, so that it can be tested without a GPU: only instructions.h is another.
#pragma once
#include "../../msl/shim/entry.h"
#include "../shim/simdgroup_matrix.h"
