;; matvec.wasm: the product of a matrix in q8_0 and a vector, in WebAssembly with vectors of 128 bits.
;; Made by `npx wat2wasm matvec.wat` of https://github.com/WebAssembly/wabt; a test
;; compares its results in a browser.
(module
  (import "page" "memory" (memory 1))
  ;; y[rows] = W x, with W as int8 [rows, 32 blocks], one float32 scale for each 32 of a row, and x as float32
  ;; [32 blocks]. All are addresses in bytes.
  (func (export "matvec")
    (param $w i32) (param $scale i32) (param $x i32) (param $y i32) (param $rows i32) (param $blocks i32)
    (local $block i32) (local $at i32) (local $bytes v128) (local $half v128) (local $sum v128) (local $row v128)
    (loop $each_row
      (local.set $row (v128.const f32x4 0 0 0 0))
      (local.set $block (local.get $blocks))
      (local.set $at (local.get $x))
      (loop $each_block
        ;; the first 16 weights
        (local.set $bytes (v128.load (local.get $w)))
        (local.set $half (i16x8.extend_low_i8x16_s (local.get $bytes)))
        (local.set $sum (f32x4.mul
          (f32x4.convert_i32x4_s (i32x4.extend_low_i16x8_s (local.get $half)))
          (v128.load (local.get $at))))
        (local.set $sum (f32x4.add (local.get $sum) (f32x4.mul
          (f32x4.convert_i32x4_s (i32x4.extend_high_i16x8_s (local.get $half)))
          (v128.load offset=16 (local.get $at)))))
        (local.set $half (i16x8.extend_high_i8x16_s (local.get $bytes)))
        (local.set $sum (f32x4.add (local.get $sum) (f32x4.mul
          (f32x4.convert_i32x4_s (i32x4.extend_low_i16x8_s (local.get $half)))
          (v128.load offset=32 (local.get $at)))))
        (local.set $sum (f32x4.add (local.get $sum) (f32x4.mul
          (f32x4.convert_i32x4_s (i32x4.extend_high_i16x8_s (local.get $half)))
          (v128.load offset=48 (local.get $at)))))
        ;; the other 16
        (local.set $bytes (v128.load offset=16 (local.get $w)))
        (local.set $half (i16x8.extend_low_i8x16_s (local.get $bytes)))
        (local.set $sum (f32x4.add (local.get $sum) (f32x4.mul
          (f32x4.convert_i32x4_s (i32x4.extend_low_i16x8_s (local.get $half)))
          (v128.load offset=64 (local.get $at)))))
        (local.set $sum (f32x4.add (local.get $sum) (f32x4.mul
          (f32x4.convert_i32x4_s (i32x4.extend_high_i16x8_s (local.get $half)))
          (v128.load offset=80 (local.get $at)))))
        (local.set $half (i16x8.extend_high_i8x16_s (local.get $bytes)))
        (local.set $sum (f32x4.add (local.get $sum) (f32x4.mul
          (f32x4.convert_i32x4_s (i32x4.extend_low_i16x8_s (local.get $half)))
          (v128.load offset=96 (local.get $at)))))
        (local.set $sum (f32x4.add (local.get $sum) (f32x4.mul
          (f32x4.convert_i32x4_s (i32x4.extend_high_i16x8_s (local.get $half)))
          (v128.load offset=112 (local.get $at)))))
        (local.set $row (f32x4.add (local.get $row)
          (f32x4.mul (local.get $sum) (v128.load32_splat (local.get $scale)))))
        (local.set $w (i32.add (local.get $w) (i32.const 32)))
        (local.set $scale (i32.add (local.get $scale) (i32.const 4)))
        (local.set $at (i32.add (local.get $at) (i32.const 128)))
        (br_if $each_block (local.tee $block (i32.sub (local.get $block) (i32.const 1)))))
      (f32.store (local.get $y) (f32.add
        (f32.add (f32x4.extract_lane 0 (local.get $row)) (f32x4.extract_lane 1 (local.get $row)))
        (f32.add (f32x4.extract_lane 2 (local.get $row)) (f32x4.extract_lane 3 (local.get $row)))))
      (local.set $y (i32.add (local.get $y) (i32.const 4)))
      (br_if $each_row (local.tee $rows (i32.sub (local.get $rows) (i32.const 1)))))))
