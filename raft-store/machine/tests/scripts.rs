//! Stories as text (tests/scripts/*.txt): a line `> command` is applied, the lines under it are what came of
//! it. `UPDATE_SCRIPTS=1 cargo test -p unibus-machine --test scripts` writes them anew; read the diff.

mod common;
mod script;

use std::path::PathBuf;
use std::{env, fs};

#[test]
fn stories() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/scripts");
    let mut paths: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(paths.len() >= 5, "the scripts are there");
    for path in paths {
        let told = fs::read_to_string(&path).unwrap();
        let found = script::run(&told);
        if env::var_os("UPDATE_SCRIPTS").is_some() {
            fs::write(&path, &found).unwrap();
        } else if let Some(at) = (0..).zip(told.lines().zip(found.lines())).find(|(_, (a, b))| a != b).map(|(at, _)| at)
        {
            let line = |text: &str| text.lines().nth(at).unwrap_or_default().to_owned();
            panic!("{}:{}\n  told:  {}\n  found: {}", path.display(), at + 1, line(&told), line(&found));
        } else {
            assert_eq!(told, found, "{}", path.display());
        }
    }
}
