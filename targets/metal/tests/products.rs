//! candle's matrix product and fused attention (MLX's kernels) as this crate launches them, compiled as C++ and run on the CPU, beside the definition:
//! parts of matrices, transposed ones, several at distances, sizes around every tile. It needs candle's sources, which
//! `make check-metal` finds.

mod beside;
mod emulated;

use beside::{near, numbers};
use emulated::{Bytes, Emulated, shared_library};
use libloading::Library;
use pleinair_metal::gemm::{Gemm, GemmParams};
use pleinair_metal::machine::{FUSED_HEADS, FusedAttention, Kind, Machine, Matrix, Product, Strided};
use std::collections::BTreeSet;
use std::ffi::{CString, c_char, c_int, c_void};

/// MLX's source as C++: address spaces and attributes say nothing there, constants of functions are set before they run, and
/// what a threadgroup shares lies in one place for the fibres of its CPU thread.
fn as_cpp(source: &str, constants: &[&str], shared: &[&str]) -> String {
    let mut source = source
        .replace("const constant ", "const ")
        .replace("static constant constexpr const", "static constexpr const")
        .replace(" [[threadgroup(0)]]", "")
        .replace(" [[threadgroup(1)]]", "");
    for name in shared {
        source = source.replace(&format!("threadgroup T {name}["), &format!("static thread_local T {name}["));
    }
    for constant in constants {
        let found = source.find(&format!("constant bool {constant} [[")).unwrap_or_else(|| panic!("no {constant}"));
        let end = found + source[found..].find(';').unwrap();
        source.replace_range(found..end, &format!("static thread_local bool {constant}"));
    }
    source
}

/// One of candle's sources.
fn candles(file: &str) -> String {
    let folder =
        std::env::var("CANDLE_METAL").expect("CANDLE_METAL names candle's Metal sources: use make check-metal");
    std::fs::read_to_string(std::path::Path::new(&folder).join(file)).unwrap()
}

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
    let source = candles("mlx_gemm.metal");
    // instances have attributes where C++ has none
    let (source, _) = source.split_once("#define instantiate_gemm(").unwrap();
    // what only other batches than ours need differs from itself by the address space alone
    let (before, rest) = source.split_once("// utils.h").unwrap();
    let (_, after) = rest.split_once("constant bool has_batch").unwrap();
    let unused = "template <class... A> size_t elem_to_loc(A...) { abort(); }\n\
                  template <class... A> ulong2 elem_to_loc_broadcast(A...) { abort(); }\n";
    let constants = ["has_batch", "use_out_source", "do_axpby", "align_M", "align_N", "align_K", "do_gather"];
    let source = as_cpp(&format!("{before}{unused}constant bool has_batch{after}"), &constants, &["As", "Bs"]);
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

/// What MLX's attention is told, as candle fills it.
#[repr(C)]
struct AttnParams {
    sizes: [i32; 6],
    scale: f32,
    softcapping: f32,
    blocks: [i32; 7],
    strides: [[i64; 3]; 4],
}

type Attend = unsafe extern "C" fn(
    c_int,
    *const bool,
    *const c_void,
    *const c_void,
    *const c_void,
    *mut c_void,
    *const AttnParams,
) -> c_int;

fn attention_library() -> Library {
    let source = candles("scaled_dot_product_attention.metal");
    let (_, source) = source.split_once("// ============ \"mlx/backend/metal/kernels/steel/attn/loader.h\"").unwrap();
    let (source, _) = source.split_once("#define instantiate_kernel(").unwrap();
    // one kind of pointer where Metal has four
    let (before, rest) = source.split_once("template <typename T>\nstruct pointer_element<device T*>").unwrap();
    let (_, after) = rest.split_once("template <typename T>\nusing pointer_element_t").unwrap();
    let source = format!("{before}template <typename T>\nusing pointer_element_t{after}");
    let constants = ["align_Q", "align_K", "has_mask", "do_causal"];
    let source = as_cpp(&source, &constants, &["Q_smem", "KV_smem"]);
    let set: String = constants.iter().enumerate().map(|(i, name)| format!("{name} = constants[{i}]; ")).collect();
    let table: String = FUSED_HEADS
        .iter()
        .map(|&size| {
            let keys = if size < 128 { 32 } else { 16 };
            format!("if (size == {size}) return launch(attention<half, 32, {keys}, {size}, 4, 1, half, float>, constants, q, k, v, y, params);\n")
        })
        .collect();
    let text = format!(
        "#include \"simdgroup_matrix.hpp\"\nusing namespace metal;\n\
         #define STEEL_CONST static constexpr const\n#define STEEL_PRAGMA_UNROLL\n\
         template <class T> struct Limits {{ static constexpr T min = -std::numeric_limits<T>::infinity(); }};\n{source}\n\
         template <class Kernel>\n\
         int launch(Kernel* kernel_, const bool* constants, const void* q, const void* k, const void* v, void* y, \
         const AttnParams* p) {{\n{set}\n\
         for (int z = 0; z < p->B; z++) for (int h = 0; h < p->H; h++) for (int x = 0; x < p->NQ; x++)\n\
         emulator::Block::run({{32, 4, 1}}, {{}}, {{}}, [&] {{\n\
         const emulator::Thread& self = emulator::Block::self();\n\
         kernel_((const half*)q, (const half*)k, (const half*)v, (half*)y, p, nullptr, nullptr, self.lane(), \
         self.linear / 32, uint3(x, h, z), uint3(self.index.x, self.index.y, self.index.z));\n\
         }});\n\
         return 0;\n}}\n\
         extern \"C\" int mlx_attend(int size, const bool* constants, const void* q, const void* k, const void* v, void* y, \
         const AttnParams* params) {{\n{table}return 1;\n}}\n"
    );
    shared_library("attention", &text, &["-w"])
}

/// The fused attention as the plans ask for it: rows of queries and of keys and values that lie apart, heads side by side.
#[test]
#[ignore = "needs candle's sources; make check-metal runs it"]
fn fused_attention_of_views() {
    let library = attention_library();
    for size in FUSED_HEADS {
        for (batch, heads, queries, keys) in [(1, 1, 1, 1), (2, 3, 33, 77), (1, 2, 64, 64), (2, 1, 40, 31)] {
            attends(&library, size, (batch, heads, queries, keys));
        }
    }
}

fn attends(library: &Library, per_head: usize, (batch, heads, queries, keys): (usize, usize, usize, usize)) {
    let (kind, width, gap) = (Kind::F16, heads * per_head, 8);
    let q = Bytes::numbers(&numbers(1, batch * queries * (width + gap)), kind);
    let kv = Bytes::numbers(&numbers(2, batch * keys * (2 * width + gap)), kind);
    let count = batch * queries * width;
    let (got, want) = (Bytes::new(count * kind.bytes()), Bytes::new(count * kind.bytes()));
    let strides = |rows: usize, stride: usize| [rows * stride, per_head, stride];
    let of = |y| {
        let kv_strides = strides(keys, 2 * width + gap);
        FusedAttention {
            batch,
            heads,
            queries,
            keys,
            per_head,
            scale: 0.3,
            q: Strided { place: q.place(), strides: strides(queries, width + gap) },
            k: Strided { place: kv.place(), strides: kv_strides },
            v: Strided { place: kv.place().after(width, kind), strides: kv_strides },
            y: Strided { place: Bytes::place(y), strides: strides(queries, width) },
        }
    };
    let f = of(&got);
    let (block, key_block) = (32, if per_head < 128 { 32 } else { 16 });
    let (full, key_full) = (queries / block, keys / key_block);
    let params = AttnParams {
        sizes: [batch, heads, per_head, queries, keys, 1].map(|n| n as i32),
        scale: f.scale,
        softcapping: 1.0,
        blocks: [
            queries.div_ceil(block) as i32,
            keys.div_ceil(key_block) as i32,
            full as i32,
            key_full as i32,
            (queries - full * block) as i32,
            (keys - key_full * key_block) as i32,
            keys as i32 - queries as i32,
        ],
        strides: [&f.q, &f.k, &f.v, &f.y].map(|x| x.strides.map(|n| n as i64)),
    };
    let constants = [queries % block == 0, keys % key_block == 0, false, false];
    let at = |x: &Strided<'_, Bytes>| x.place.memory.at(x.place.offset).cast::<c_void>();
    // SAFETY: as for products.
    let done = unsafe {
        let attend = library.get::<Attend>(b"mlx_attend").unwrap();
        attend(per_head as c_int, constants.as_ptr(), at(&f.q), at(&f.k), at(&f.v), at(&f.y), &params)
    };
    assert_eq!(done, 0, "no kernel for heads of {per_head}");
    Emulated::default().attend(of(&want)).unwrap();
    let what = format!("{batch} x {heads} heads of {per_head}, {queries} x {keys}");
    // queries are scaled and rounded before the product
    near(&what, kind, 4.0, beside::unit(kind), &got.read(kind, count), &want.read(kind, count));
}
