// <metal_stdlib> and its parts, for a CPU.
#pragma once
#include "atomic.h"
#include "entry.h"
#include "simdgroup_matrix.h"
