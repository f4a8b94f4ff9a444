// FM_SIMD before a function: compiled for baseline x86-64, AVX2 and AVX-512, chosen when the
// program starts.
//
// It applies to plain functions (not templates); `flatten` pulls the callees in, so that they are
// vectorised with their caller. Sanitizer builds compile the baseline only: their runtime is not up
// when the choice is made.
#pragma once

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !FM_SANITIZE && \
    !defined(__CUDACC__)
#define FM_SIMD \
  __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4"), flatten))
#else
#define FM_SIMD
#endif
