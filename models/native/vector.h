/* Vectors of floats for the layers: 16 with AVX-512, 8 with AVX2, one float in plain C. The same names for all three. */
#pragma once
#include "functions.h"

#if defined(__AVX512F__)
#include <immintrin.h>
typedef __m512 vf;
#define VL 16
#define PANEL_MAX 16
#define SPLIT_MAX 4
#define BLOCK_VECTORS 4
#define v_load(p) _mm512_loadu_ps(p)
#define v_store(p, v) _mm512_storeu_ps(p, v)
#define v_set1(x) _mm512_set1_ps(x)
#define v_zero() _mm512_setzero_ps()
#define v_add(a, b) _mm512_add_ps(a, b)
#define v_mul(a, b) _mm512_mul_ps(a, b)
#define v_fma(a, b, c) _mm512_fmadd_ps(a, b, c)
#define v_max(a, b) _mm512_max_ps(a, b)
#define v_half(p) _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(p)))
#define v_bfloat(p) \
    _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(p))), 16))
#define v_byte(p) _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(p))))
#elif defined(__AVX2__)
#include <immintrin.h>
typedef __m256 vf;
#define VL 8
#define PANEL_MAX 8
#define SPLIT_MAX 3
#define BLOCK_VECTORS 2
#define v_load(p) _mm256_loadu_ps(p)
#define v_store(p, v) _mm256_storeu_ps(p, v)
#define v_set1(x) _mm256_set1_ps(x)
#define v_zero() _mm256_setzero_ps()
#define v_add(a, b) _mm256_add_ps(a, b)
#define v_mul(a, b) _mm256_mul_ps(a, b)
#define v_fma(a, b, c) _mm256_fmadd_ps(a, b, c)
#define v_max(a, b) _mm256_max_ps(a, b)
#define v_half(p) _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(p)))
#define v_bfloat(p) \
    _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(p))), 16))
#define v_byte(p) _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(p))))
#else
typedef float vf;
#define VL 1
#define PANEL_MAX 8
#define SPLIT_MAX 4
#define BLOCK_VECTORS 4
#define v_load(p) (*(p))
#define v_store(p, v) (*(p) = (v))
#define v_set1(x) (x)
#define v_zero() 0.0f
#define v_add(a, b) ((a) + (b))
#define v_mul(a, b) ((a) * (b))
#define v_fma(a, b, c) fmaf(a, b, c)
#define v_max(a, b) larger(a, b)
#endif
