//! candle's matrix product (MLX's kernel) as this crate launches it, compiled as C++ and run on the CPU, beside the definition:
//! parts of matrices, transposed ones, several at distances, sizes around every tile. It needs candle's sources, which
//! `make check-metal` finds.

mod beside;
mod emulated;

use beside::{near, numbers};
use emulated::{Bytes, Emulated, shared_library};
use libloading::Library;
use pleinair_metal::gemm::{Gemm, GemmParams};
use pleinair_metal::machine::{Kind, Machine, Matrix, Product};
use std::collections::BTreeSet;
use std::ffi::{CString, c_char, c_int, c_void};

type Run = unsafe extern "C" fn(
    *const c_char,
    *const bool,
    *const c_void,
    *const c_void,
    *mut c_void,
    *const GemmParams,
    *const u32,
) -> c_int;

/// The kernels by their names here, of MLX's template.
fn library(names: &BTreeSet<String>) -> Library {
    let file = std::env::var("MLX_GEMM").expect("MLX_GEMM names candle's mlx_gemm.metal: run this by make check-metal");
    let source = std::fs::read_to_string(&file).unwrap();
    // instances have attributes where C++ has none
    let (source, _) = source.split_once("#define instantiate_gemm(").unwrap();
    // what only other batches than ours need differs from itself by the address space alone
    let (before, rest) = source.split_once("// utils.h").unwrap();
    let (_, after) = rest.split_once("constant bool has_batch").unwrap();
    let unused = "template <class... A> size_t elem_to_loc(A...) { abort(); }\n\
                  template <class... A> ulong2 elem_to_loc_broadcast(A...) { abort(); }\n";
    let mut source = format!("{before}{unused}constant bool has_batch{after}")
        .replace("const constant ", "const ")
        .replace("static constant constexpr const", "static constexpr const")
        .replace(" [[threadgroup(0)]]", "")
        .replace(" [[threadgroup(1)]]", "")
        .replace("threadgroup T As[", "static thread_local T As[")
        .replace("threadgroup T Bs[", "static thread_local T Bs[");
    let constants = ["has_batch", "use_out_source", "do_axpby", "align_M", "align_N", "align_K", "do_gather"];
    for constant in constants {
        let found = source.find(&format!("constant bool {constant} [[")).unwrap_or_else(|| panic!("no {constant}"));
        let end = found + source[found..].find(';').unwrap();
        source.replace_range(found..end, &format!("static thread_local bool {constant}"));
    }
    let table: String = names
        .iter()
        .map(|name| {
            let parts: Vec<_> = name.split('_').collect();
            let &["gemm", turned, numbers, _, bm, bn, bk, wm, wn] = &parts[..] else { panic!("{name}") };
            let number = if numbers == "f16" { "half" } else { "float" };
            let (a, b) = (turned.starts_with('t'), turned.ends_with('t'));
            format!(
                "if (!strcmp(name, \"{name}\")) return launch<{number}>(gemm<{number}, {bm}, {bn}, {bk}, {wm}, {wn}, {a}, {b}>, \
                 constants, a, b, d, params, grid);\n"
            )
        })
        .collect();
    let set: String = constants.iter().enumerate().map(|(i, name)| format!("{name} = constants[{i}]; ")).collect();
    let text = format!(
        "#include \"simdgroup_matrix.hpp\"\n#include <cstring>\n{source}\n\
         template <class T, class Kernel>\n\
         int launch(Kernel* kernel_, const bool* constants, const void* a, const void* b, void* d, const void* params, \
         const uint* grid) {{\n\
         {set}\n\
         GEMMAddMMParams unused{{}};\n\
         for (uint z = 0; z < grid[2]; z++) for (uint y = 0; y < grid[1]; y++) for (uint x = 0; x < grid[0]; x++)\n\
         emulator::Block::run({{grid[3], grid[4], grid[5]}}, {{x, y, z}}, {{grid[0], grid[1], grid[2]}}, [&] {{\n\
         const emulator::Thread& self = emulator::Block::self();\n\
         kernel_((const T*)a, (const T*)b, nullptr, (T*)d, (const GEMMParams*)params, &unused, nullptr, nullptr, nullptr, \
         nullptr, nullptr, nullptr, nullptr, packed_int3(), self.lane(), self.linear / 32, uint3(x, y, z), \
         uint3(self.index.x, self.index.y, self.index.z));\n\
         }});\n\
         return 0;\n\
         }}\n\
         extern \"C\" int mlx_run(const char* name, const bool* constants, const void* a, const void* b, void* d, \
         const void* params, const uint* grid) {{\n{table}return 1;\n}}\n"
    );
    shared_library("mlx", &text, &["-w"])
}

/// Products of `size`, the first and the second matrix transposed or not.
#[derive(Debug, Clone, Copy)]
struct Case {
    kind: Kind,
    batch: usize,
    size: (usize, usize, usize),
    turned: (bool, bool),
    /// Numbers between matrices that lie side by side.
    gap: usize,
}

fn cases() -> Vec<Case> {
    let sizes = [(1, 5, 3), (15, 33, 16), (16, 64, 32), (64, 64, 64), (65, 31, 33), (128, 96, 40), (70, 130, 17)];
    let mut all = vec![];
    for kind in [Kind::F32, Kind::F16] {
        for size in sizes {
            for turned in [(false, false), (false, true), (true, false)] {
                all.push(Case { kind, batch: 1, size, turned, gap: 0 });
                all.push(Case { kind, batch: 3, size, turned, gap: 5 });
            }
        }
        // tiles for large products
        all.push(Case { kind, batch: 1, size: (1030, 1024, 8), turned: (false, true), gap: 1 });
    }
    all
}

#[test]
#[ignore = "needs candle's sources; make check-metal runs it"]
fn products_of_parts() {
    let mut names = BTreeSet::new();
    let mut libraries: Option<Library> = None;
    // first which kernels there must be, then all of them
    for run in [false, true] {
        for case in cases() {
            for small in [false, true] {
                let (name, agrees) = product(case, small, libraries.as_ref());
                assert_eq!(agrees, run, "{name}");
                names.insert(name);
            }
        }
        libraries.get_or_insert_with(|| library(&names));
    }
    println!("{} kernels: {names:?}", names.len());
    // three tiles with what lies as it is or transposed first, a fourth beside for a transposed second, of both types
    assert_eq!(names.len(), 14);
}

/// The kernel's name and whether it ran.
fn product(case: Case, small: bool, library: Option<&Library>) -> (String, bool) {
    let Case { kind, batch, size: (m, n, k), turned: (a_turned, b_turned), gap } = case;
    let dims = |rows: usize, columns: usize, turned: bool| if turned { (columns, rows) } else { (rows, columns) };
    let (a_rows, a_width) = dims(m, k, a_turned);
    let (b_rows, b_width) = dims(k, n, b_turned);
    // heads lie side by side in a row
    let stride = |width: usize| batch * (width + gap);
    let memory = |seed, rows: usize, width: usize| Bytes::numbers(&numbers(seed, rows * stride(width) + 1), kind);
    let (a, b) = (memory(1, a_rows, a_width), memory(2, b_rows, b_width));
    let start = numbers(3, m * stride(n) + 1);
    let (got, want) = (Bytes::numbers(&start, kind), Bytes::numbers(&start, kind));
    let matrix = |bytes, width: usize, transposed| {
        let matrix: Matrix<'_, Bytes> =
            Matrix::new(Bytes::place(bytes).after(1, kind), stride(width)).every(width + gap);
        Matrix { transposed, ..matrix }
    };
    let of = |d| Product {
        kind,
        batch,
        size: (m, n, k),
        a: matrix(&a, a_width, a_turned),
        b: matrix(&b, b_width, b_turned),
        d: matrix(d, n, false),
    };
    let gemm = Gemm::new(&of(&got), small).unwrap();
    let Some(library) = library else { return (gemm.name, false) };
    let (name, constants) = (CString::new(gemm.name.clone()).unwrap(), gemm.constants.map(|(_, value)| value));
    let ([x, y], [simd, across, down]) = (gemm.threadgroups, gemm.threads);
    let grid = [x, y, batch, simd, across, down].map(|n| n as u32);
    let at = |bytes: &Bytes| bytes.at(kind.bytes()).cast::<c_void>();
    // SAFETY: it takes what is said in its text above; the guards behind the memory see what it writes too far.
    let done = unsafe {
        let run = library.get::<Run>(b"mlx_run").unwrap();
        run(name.as_ptr(), constants.as_ptr(), at(&a), at(&b), at(&got), &gemm.params, grid.as_ptr())
    };
    assert_eq!(done, 0, "no kernel {}", gemm.name);
    Emulated::default().multiply(of(&want)).unwrap();
    let what = format!("{} {case:?}", gemm.name);
    let count = start.len();
    near(&what, kind, 4.0 + (k as f32).sqrt(), 0.0, &got.read(kind, count), &want.read(kind, count));
    (gemm.name, true)
}
