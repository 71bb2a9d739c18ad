//! The machine builds where no operating system exists: nothing in it reads a clock, a file or randomness.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// What would bring I/O, time, randomness or a JavaScript host.
const FORBIDDEN: &[&str] = &[
    "getrandom",
    "rand",
    "fastrand",
    "tokio",
    "mio",
    "libc",
    "rustix",
    "socket2",
    "wasm-bindgen",
    "js-sys",
    "web-time",
    "openraft",
    "sled",
    "ring",
    "chrono",
    "time",
    "tonic",
    "hyper",
    "tempfile",
    "parking_lot",
];
const TARGET: &str = "wasm32-unknown-unknown";

fn cargo(args: &[&str]) -> std::process::Output {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    Command::new(cargo).current_dir(env!("CARGO_MANIFEST_DIR")).args(args).output().expect("cargo runs")
}

#[test]
fn no_dependency_reads_clock_disk_net_or_randomness() {
    for package in ["unibus-machine", "unibus-proto"] {
        let output = cargo(&["tree", "-p", package, "-e", "normal", "--prefix", "none"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let tree = String::from_utf8(output.stdout).unwrap();
        let crates: Vec<&str> = tree.lines().filter_map(|line| line.split_whitespace().next()).collect();
        assert!(crates.contains(&"prost") && crates.contains(&"ed25519-dalek"), "the tree is read: {crates:?}");
        let bad: Vec<_> = crates.iter().filter(|name| FORBIDDEN.contains(name)).collect();
        assert!(bad.is_empty(), "{package} depends on {bad:?}");
    }
}

/// Imports of a module are what it needs from a host; there must be none.
#[test]
fn it_builds_for_wasm_without_imports() {
    let sysroot = Command::new("rustc").args(["--print", "sysroot"]).output().expect("rustc runs");
    let sysroot = PathBuf::from(String::from_utf8(sysroot.stdout).unwrap().trim());
    if !sysroot.join("lib/rustlib").join(TARGET).exists() {
        println!("SKIPPED it_builds_for_wasm_without_imports: target {TARGET} is not installed (rustup target add)");
        return;
    }
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("wasm");
    let manifest = write_probe(&folder);
    let target = folder.join("target");
    let args = ["build", "--target", TARGET, "--manifest-path", &manifest, "--target-dir"];
    let output = cargo(&[&args[..], &[target.to_str().unwrap()]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let module = fs::read(target.join(TARGET).join("debug/probe.wasm")).unwrap();
    assert_eq!(imports(&module), Some(0), "the module needs something from a host");
}

/// A library that exports `apply` over bytes, so that nothing of the machine is optimised away.
fn write_probe(folder: &Path) -> String {
    let machine = env!("CARGO_MANIFEST_DIR");
    let manifest = format!(
        "[package]\nname = \"probe\"\nversion = \"0.0.0\"\nedition = \"2024\"\n[workspace]\n[lib]\ncrate-type = [\"cdylib\"]\n\
         [dependencies]\nunibus-machine = {{ path = {machine:?} }}\nunibus-proto = {{ path = {:?} }}\nprost = \"0.14\"\n",
        Path::new(machine).join("../../proto")
    );
    let source = "use prost::Message;\n\
        #[unsafe(no_mangle)]\npub extern \"C\" fn probe(start: *const u8, len: usize) -> usize {\n\
        let bytes = unsafe { std::slice::from_raw_parts(start, len) };\n\
        let group = unibus_proto::id::GroupId(1);\n\
        let mut machine = unibus_machine::Machine::new(group, Default::default(), unibus_machine::MemoryRows::default());\n\
        let entry = unibus_machine::Entry { group, index: 1, term: 1 };\n\
        unibus_proto::log::Proposal::decode(bytes).map_or(0, |it| machine.apply(entry, it).events.len())\n}\n";
    fs::create_dir_all(folder.join("src")).unwrap();
    fs::write(folder.join("Cargo.toml"), manifest).unwrap();
    fs::write(folder.join("src/lib.rs"), source).unwrap();
    fs::copy(Path::new(machine).join("../../Cargo.lock"), folder.join("Cargo.lock")).unwrap();
    folder.join("Cargo.toml").to_str().unwrap().to_owned()
}

/// How many imports a module has (section 2 of the binary format); none when it is no module.
fn imports(module: &[u8]) -> Option<u64> {
    let mut rest = module.strip_prefix(b"\0asm\x01\0\0\0")?;
    while let Some((&id, mut section)) = rest.split_first() {
        let length = leb128(&mut section)? as usize;
        if id == 2 {
            return leb128(&mut section);
        }
        rest = section.get(length..)?;
    }
    Some(0)
}

fn leb128(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

#[test]
fn the_import_section_is_read() {
    let header = b"\0asm\x01\0\0\0";
    assert_eq!(imports(header), Some(0));
    assert_eq!(imports(&[&header[..], &[1, 1, 0, 2, 1, 3]].concat()), Some(3));
    assert_eq!(imports(b"ELF"), None);
}
