//! `ptx.cuh` against the fragments that the PTX ISA describes, written here from its formulas and not from the kernels:
//! the one thing that the emulated device could get wrong together with the kernels.

use crate::kernels::{Module, function};
use candle_core::cuda::cudarc::driver::{LaunchConfig, PushKernelArg};
use candle_core::cuda::{CudaDevice, WrapErr};
use candle_core::{Device, Result};
use half::f16;

fn device() -> CudaDevice {
    match crate::open().expect("an NVIDIA GPU, or the emulated one") {
        Device::Cuda(device) => device,
        _ => unreachable!("open() gives CUDA devices"),
    }
}

fn warp(shared_mem_bytes: u32) -> LaunchConfig {
    LaunchConfig { grid_dim: (1, 1, 1), block_dim: (32, 1, 1), shared_mem_bytes }
}

/// The two halves of a register, the lower one first.
fn halves(register: u32) -> [f32; 2] {
    [f16::from_bits(register as u16).to_f32(), f16::from_bits((register >> 16) as u16).to_f32()]
}

fn register(low: f32, high: f32) -> u32 {
    u32::from(f16::from_f32(low).to_bits()) | u32::from(f16::from_f32(high).to_bits()) << 16
}

/// Runs `load_rows` or `load_transposed` on matrices whose element (row, column) of matrix i is 64 i + 8 row + column.
fn load(name: &str) -> Result<Vec<u32>> {
    let device = device();
    let numbers: Vec<f16> = (0..256).map(|i| f16::from_f32(i as f32)).collect();
    let input = device.clone_htod(&numbers)?;
    let mut out = device.alloc_zeros::<u32>(128)?;
    let function = function(&device, Module::PtxTest, name)?;
    let mut builder = function.builder();
    builder.arg(&input).arg(&mut out);
    // SAFETY: the kernel reads 256 numbers of `input` and writes 128 of `out`.
    unsafe { builder.launch(warp(0)) }.w()?;
    device.clone_dtoh(&out)
}

/// "ldmatrix": thread l gets of each matrix row l / 4, elements 2 (l % 4) and the next.
#[test]
fn loads_rows() -> Result<()> {
    let out = load("load_rows")?;
    for lane in 0..32 {
        for matrix in 0..4 {
            let first = (64 * matrix + 8 * (lane / 4) + 2 * (lane % 4)) as f32;
            assert_eq!(halves(out[lane * 4 + matrix]), [first, first + 1.0], "lane {lane}, matrix {matrix}");
        }
    }
    Ok(())
}

/// ".trans": the matrix is loaded column first, so that thread l gets column l / 4, rows 2 (l % 4) and the next.
#[test]
fn loads_transposed() -> Result<()> {
    let out = load("load_transposed")?;
    for lane in 0..32 {
        for matrix in 0..4 {
            let first = (64 * matrix + 8 * (2 * (lane % 4)) + lane / 4) as f32;
            assert_eq!(halves(out[lane * 4 + matrix]), [first, first + 8.0], "lane {lane}, matrix {matrix}");
        }
    }
    Ok(())
}

/// Row and column of element i of A in lane l: "row = groupID for ai where 0 <= i < 2 || 4 <= i < 6, groupID + 8 otherwise;
/// col = (threadID_in_group * 2) + (i & 0x1) for ai where i < 4, (threadID_in_group * 2) + (i & 0x1) + 8 where i >= 4".
fn place_a(lane: usize, i: usize) -> (usize, usize) {
    let row = if i < 2 || (4..6).contains(&i) { lane >> 2 } else { (lane >> 2) + 8 };
    (row, (lane % 4) * 2 + (i & 1) + if i < 4 { 0 } else { 8 })
}

/// Of B: "row = (threadID_in_group * 2) + (i & 0x1) for bi where i < 2, + 8 where i >= 2; col = groupID".
fn place_b(lane: usize, i: usize) -> (usize, usize) {
    ((lane % 4) * 2 + (i & 1) + if i < 2 { 0 } else { 8 }, lane >> 2)
}

/// Of C and D: "row = groupID for ci where i < 2, groupID + 8 where i >= 2; col = (threadID_in_group * 2) + (i & 0x1)".
fn place_d(lane: usize, i: usize) -> (usize, usize) {
    (if i < 2 { lane >> 2 } else { (lane >> 2) + 8 }, (lane % 4) * 2 + (i & 1))
}

/// Small whole numbers: every product and sum is exact.
#[test]
fn multiplies_matrices() -> Result<()> {
    let a = |row: usize, k: usize| ((row * 7 + k * 3) % 11) as f32 - 5.0;
    let b = |k: usize, column: usize| ((k * 5 + column * 13) % 9) as f32 - 4.0;
    let before = |row: usize, column: usize| (row * 8 + column) as f32;
    let (mut fragments_a, mut fragments_b, mut fragments_d) = (vec![], vec![], vec![]);
    for lane in 0..32 {
        let of_a = |i| a(place_a(lane, i).0, place_a(lane, i).1);
        let of_b = |i| b(place_b(lane, i).0, place_b(lane, i).1);
        fragments_a.extend((0..4).map(|r| register(of_a(2 * r), of_a(2 * r + 1))));
        fragments_b.extend((0..2).map(|r| register(of_b(2 * r), of_b(2 * r + 1))));
        fragments_d.extend((0..4).map(|i| before(place_d(lane, i).0, place_d(lane, i).1)));
    }
    let device = device();
    let (on_a, on_b) = (device.clone_htod(&fragments_a)?, device.clone_htod(&fragments_b)?);
    let mut on_d = device.clone_htod(&fragments_d)?;
    let function = function(&device, Module::PtxTest, "multiply")?;
    let mut builder = function.builder();
    builder.arg(&on_a).arg(&on_b).arg(&mut on_d);
    // SAFETY: one warp, 4, 2 and 4 numbers a lane.
    unsafe { builder.launch(warp(0)) }.w()?;
    let out = device.clone_dtoh(&on_d)?;
    for lane in 0..32 {
        for i in 0..4 {
            let (row, column) = place_d(lane, i);
            let wanted = before(row, column) + (0..16).map(|k| a(row, k) * b(k, column)).sum::<f32>();
            assert_eq!(out[lane * 4 + i], wanted, "lane {lane}, element {i}");
        }
    }
    Ok(())
}

#[test]
fn copies_beside_the_computation() -> Result<()> {
    let device = device();
    let numbers: Vec<f32> = (0..256).map(|i| i as f32 + 1.0).collect();
    let input = device.clone_htod(&numbers)?;
    for valid in [32, 20, 0] {
        let mut out = device.alloc_zeros::<f32>(256)?;
        let function = function(&device, Module::PtxTest, "copy")?;
        let mut builder = function.builder();
        builder.arg(&input).arg(&mut out).arg(&valid);
        // SAFETY: 256 numbers are read and written, and 1024 bytes of shared memory used.
        unsafe { builder.launch(warp(1024)) }.w()?;
        let out = device.clone_dtoh(&out)?;
        let kept = 128 + 4 * valid as usize;
        assert_eq!(out[..kept], numbers[..kept]);
        assert!(out[kept..].iter().all(|&v| v == 0.0), "zeros from lane {valid} on");
    }
    Ok(())
}

/// More shared memory than a block may have without asking, or too many threads.
#[test]
fn launches_that_do_not_fit_are_errors() -> Result<()> {
    let device = device();
    let input = device.clone_htod(&[0f32; 256])?;
    let mut out = device.alloc_zeros::<f32>(256)?;
    let function = function(&device, Module::PtxTest, "copy")?;
    for config in [warp(64 * 1024), LaunchConfig { block_dim: (2048, 1, 1), ..warp(1024) }] {
        let mut builder = function.builder();
        builder.arg(&input).arg(&mut out).arg(&32i32);
        // SAFETY: nothing runs.
        assert!(unsafe { builder.launch(config) }.is_err());
    }
    Ok(())
}
