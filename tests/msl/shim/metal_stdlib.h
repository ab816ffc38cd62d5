// <metal_stdlib> and its parts, for a CPU.
#pragma once
#include "atomic.h"
#include "entry.h"
#include "fast.h"
#include "simdgroup_matrix.h"
