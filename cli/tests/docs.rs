//! The documents name files that exist.

use std::fs;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the workspace")
}

/// All files below a directory with this ending, without what is built and what is hidden.
fn files(directory: &Path, ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap().map(Result::unwrap) {
        let (name, path) = (entry.file_name(), entry.path());
        let is_ours = name != "target" && !name.to_string_lossy().starts_with('.');
        if is_ours && path.is_dir() {
            found.extend(files(&path, ending));
        } else if is_ours && name.to_string_lossy().ends_with(ending) {
            found.push(path);
        }
    }
    found
}

/// The words between backticks, outside of blocks.
fn quoted(text: &str) -> Vec<&str> {
    let lines = text.split("```").step_by(2).flat_map(str::lines);
    lines.flat_map(|line| line.split('`').skip(1).step_by(2)).flat_map(str::split_whitespace).collect()
}

#[test]
fn documents_name_source_files_that_exist() {
    let sources = files(root(), ".rs");
    let (mut named, mut missing) = (0, Vec::new());
    for document in files(root(), ".md") {
        let text = fs::read_to_string(&document).unwrap();
        for path in quoted(&text).into_iter().filter(|word| word.ends_with(".rs")) {
            named += 1;
            // Documents leave out the beginning where it is clear.
            if !sources.iter().any(|source| source.ends_with(path)) {
                missing.push(format!("{}: {path}", document.strip_prefix(root()).unwrap().display()));
            }
        }
    }
    assert!(missing.is_empty(), "named and not there: {missing:#?}");
    assert!(named > 50, "found only {named} names of files");
}

#[test]
fn words_between_backticks_are_found() {
    let text = "a `b.rs` c `d e/f.rs`\n```\n`not.rs`\n```\n`g.rs`";
    assert_eq!(quoted(text), ["b.rs", "d", "e/f.rs", "g.rs"]);
}
