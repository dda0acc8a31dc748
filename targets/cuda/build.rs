//! With feature `cuda`: `kernels/*.cu` become PTX with nvcc, one module each, and `OUT_DIR/modules.rs` embeds them. nvcc and
//! the GPU are found as candle's kernels find theirs: NVCC, PATH, CUDA_HOME or a usual folder; CUDA_COMPUTE_CAP or the GPU
//! of this machine.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

fn main() {
    println!("cargo::rerun-if-changed=kernels");
    println!("cargo::rerun-if-changed=build.rs");
    for name in ["NVCC", "NVCC_CCBIN", "CUDA_HOME", "CUDA_PATH", "CUDA_COMPUTE_CAP", "PATH"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    // set from outside where CUDA is loaded at run time: a missing library can be asked for then (src/device.rs)
    println!("cargo::rustc-check-cfg=cfg(feature, values(\"dynamic-loading\"))");
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    if let Err(message) = compile_all(&out) {
        println!("cargo::error={message}");
    }
}

fn compile_all(out: &Path) -> Result<(), String> {
    let nvcc = find_nvcc();
    let capability = compute_capability()?;
    let mut sources: Vec<PathBuf> = fs::read_dir("kernels")
        .map_err(|e| format!("the folder kernels cannot be read: {e}"))?
        .filter_map(|entry| entry.ok().map(|e| e.path()))
        .filter(|path| path.extension().is_some_and(|e| e == "cu"))
        .collect();
    sources.sort();
    let mut modules = format!(
        "/// The compute capability that the kernels are compiled for, ten times the major number and the minor one.\n\
         pub(crate) const COMPILED_FOR: u32 = {};\n",
        capability.trim_end_matches('a').parse::<u32>().map_err(|_| bad_capability(&capability))?
    );
    modules += &format!(
        "/// The major version of the CUDA that compiled them.\npub(crate) const BUILT_WITH: i32 = {};\n",
        cuda_version(&nvcc)?
    );
    for source in &sources {
        let name = source.file_stem().and_then(|n| n.to_str()).ok_or("a kernel's file name is no Unicode")?;
        let ptx = out.join(format!("{name}.ptx"));
        compile(&nvcc, source, &ptx, &capability)?;
        modules += &format!("pub(crate) const {}: &str = include_str!({ptx:?});\n", name.to_uppercase());
    }
    fs::write(out.join("modules.rs"), modules).map_err(|e| format!("modules.rs cannot be written: {e}"))
}

fn compile(nvcc: &Path, source: &Path, ptx: &Path, capability: &str) -> Result<(), String> {
    let mut command = Command::new(nvcc);
    command.arg("--ptx").arg(format!("-gencode=arch=compute_{capability},code=compute_{capability}"));
    command.args(["-std=c++17", "-O3", "--expt-relaxed-constexpr"]);
    if let Some(compiler) = env::var_os("NVCC_CCBIN") {
        command.arg("-allow-unsupported-compiler").arg("-ccbin").arg(compiler);
    }
    let output = command.arg("-o").arg(ptx).arg(source).output().map_err(|e| missing(nvcc, &e))?;
    // another nvcc may warn of what this one does not: no reason to fail on a board
    let (done, stderr) = (output.status.success(), String::from_utf8_lossy(&output.stderr));
    for line in stderr.lines() {
        println!("cargo::{}={line}", if done { "warning" } else { "error" });
    }
    if done { Ok(()) } else { Err(format!("nvcc does not compile {}", source.display())) }
}

/// 13 from "Cuda compilation tools, release 13.0, V13.0.88".
fn cuda_version(nvcc: &Path) -> Result<u32, String> {
    let output = Command::new(nvcc).arg("--version").output().map_err(|e| missing(nvcc, &e))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let major = text.split("release ").nth(1).and_then(|rest| rest.split('.').next()).and_then(|n| n.parse().ok());
    major.ok_or_else(|| format!("{} does not say its version", nvcc.display()))
}

fn missing(nvcc: &Path, error: &std::io::Error) -> String {
    format!("{} cannot be started ({error}): install CUDA's nvcc and set CUDA_HOME to its folder", nvcc.display())
}

/// The path of nvcc; the bare name where it is nowhere, so that the attempt to start it says what is missing.
fn find_nvcc() -> PathBuf {
    if let Some(nvcc) = env::var_os("NVCC").map(PathBuf::from).filter(|path| path.exists()) {
        return nvcc;
    }
    let on_path = env::split_paths(&env::var_os("PATH").unwrap_or_default()).collect::<Vec<_>>();
    let homes = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(env::var_os).map(PathBuf::from);
    let usual = ["/usr/local/cuda", "/opt/cuda"].into_iter().map(PathBuf::from);
    let folders = on_path.into_iter().chain(homes.chain(usual).map(|home| home.join("bin")));
    folders.map(|folder| folder.join("nvcc")).find(|path| path.exists()).unwrap_or_else(|| PathBuf::from("nvcc"))
}

/// `87` for 8.7; `90a` for Hopper, as candle's kernels have it.
fn compute_capability() -> Result<String, String> {
    let asked = match env::var("CUDA_COMPUTE_CAP") {
        Ok(capability) => capability,
        Err(_) => query_gpu()?,
    };
    let plain = asked.replace('.', "");
    let digits = plain.trim_end_matches('a');
    if !(2..=3).contains(&digits.len()) || !digits.chars().all(|c| c.is_ascii_digit()) {
        return Err(bad_capability(&asked));
    }
    Ok(if digits == "90" { "90a".to_string() } else { plain })
}

fn query_gpu() -> Result<String, String> {
    let output = Command::new("nvidia-smi").args(["--query-gpu=compute_cap", "--format=csv,noheader"]).output();
    let text = output.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default();
    match text.lines().next().map(str::trim) {
        Some(capability) if !capability.is_empty() => Ok(capability.to_string()),
        _ => {
            Err("for which GPU? Set CUDA_COMPUTE_CAP: 87 for Jetson Orin, 89 for an RTX 40, 90 for an H100".to_string())
        }
    }
}

fn bad_capability(text: &str) -> String {
    format!("CUDA_COMPUTE_CAP is {text:?} and should be a number like 87 (Jetson Orin), 89 (RTX 40) or 90 (H100)")
}
