//! The program as a process: exit codes, streams, files. No server is needed.

#![allow(clippy::disallowed_methods, reason = "a test of a real program in real time")]

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

struct Home(tempfile::TempDir);

impl Home {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_unibusctl"));
        command
            .args(line.split_whitespace())
            .env("XDG_CONFIG_HOME", self.path().join("config"))
            .env_remove("UNIBUS_PROFILE")
            .current_dir(self.path())
            .stdin(Stdio::null());
        command
    }

    fn run(&self, line: &str) -> Output {
        self.command(line).output().unwrap()
    }

    fn ok(&self, line: &str) -> String {
        let output = self.run(line);
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn fails(&self, line: &str, code: i32) -> String {
        let output = self.run(line);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{line}: {stderr}");
        stderr
    }

    /// A profile whose only node is a port where nobody listens.
    fn with_dead_node() -> Self {
        let home = Self::new();
        home.ok("identity new alice");
        std::fs::write(home.path().join("ca.pem"), CA).unwrap();
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        home.ok(&format!("profile add dev --identity alice.identity --ca ca.pem --node {free}"));
        home
    }
}

/// A certificate that nobody has the key of any more: only its form matters here.
const CA: &str = include_str!("ca.pem");

fn error_of(stderr: &str) -> Value {
    let line = stderr.lines().last().unwrap_or_default();
    let value: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {stderr}"));
    assert_eq!(value["schema"], "unibus.cli.v1.error");
    for field in ["code", "message", "retry", "happened", "remedy"] {
        assert!(value.get(field).is_some(), "{field} is missing: {line}");
    }
    value
}

#[test]
fn usage_errors_are_2_and_json_when_asked_for() {
    let home = Home::new();
    assert!(home.fails("rom list", 2).contains("'room'"));
    let error = error_of(&home.fails("rom list --json", 2));
    assert_eq!((error["code"].as_str(), error["retry"].as_str()), (Some("USAGE"), Some("never")));
    assert!(home.fails("sub a --raw --json", 2).contains("--raw and --json"));
    assert!(home.fails("status --node a:1 --node b:1", 2).contains("expected one"));
}

#[test]
fn without_a_profile_the_remedy_is_a_command() {
    let home = Home::new();
    let text = home.fails("whoami", 1);
    assert!(text.lines().last().is_some_and(|line| line.contains("-> unibusctl profile add")), "{text}");
    assert!(home.fails("--profile bob whoami", 1).contains("\"bob\""));
    let output = home.run("check");
    assert_eq!(output.status.code(), Some(3), "the check could not be made");
    assert!(String::from_utf8_lossy(&output.stdout).starts_with("UNKNOWN: "));
}

#[test]
fn room_without_plaintext_is_refused_before_anything_is_sent() {
    let error = error_of(&Home::with_dead_node().fails("room create ops.dpkg --json", 1));
    assert_eq!(error["happened"], "no");
    assert_eq!(error["remedy"], "unibusctl room create ops.dpkg --plaintext");
}

#[test]
fn unreachable_cluster_is_5_within_the_timeout_and_nothing_happened() {
    let home = Home::with_dead_node();
    for line in [
        "whoami",
        "status",
        "room list",
        "pub ops.dpkg hello",
        "sub ops.dpkg",
        "verify",
        "group list",
        "group transfer s1 n2",
        "config effective",
    ] {
        let started = Instant::now();
        let error = error_of(&home.fails(&format!("{line} --timeout 500ms --json"), 5));
        assert!(started.elapsed() < Duration::from_secs(10), "{line}");
        assert_eq!(error["code"], "UNREACHABLE", "{line}");
        assert_eq!((error["happened"].as_str(), error["retry"].as_str()), (Some("no"), Some("safe")), "{line}");
    }
    let output = home.run("check --timeout 500ms");
    assert_eq!(output.status.code(), Some(2), "critical");
    assert!(String::from_utf8_lossy(&output.stdout).starts_with("CRITICAL: "));
}

#[test]
fn identity_file_that_others_may_read_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let home = Home::with_dead_node();
    let identity = home.path().join("alice.identity");
    std::fs::set_permissions(&identity, std::fs::Permissions::from_mode(0o640)).unwrap();
    let text = home.fails("whoami --timeout 500ms", 4);
    assert!(text.lines().last().is_some_and(|line| line.contains("-> chmod 600")), "{text}");
}

#[test]
fn profiles_are_added_chosen_and_forgotten() {
    let home = Home::with_dead_node();
    home.ok("profile add bob --identity alice.identity --ca ca.pem --node 127.0.0.1:1 --node 127.0.0.1:2");
    let chosen = |home: &Home| {
        let value: Value = serde_json::from_str(&home.ok("profile show --json")).unwrap();
        (value["name"].as_str().unwrap().to_owned(), value["source"].as_str().unwrap().to_owned())
    };
    assert_eq!(chosen(&home), ("dev".into(), "default".into()));
    home.ok("profile use bob");
    assert_eq!(chosen(&home), ("bob".into(), "profile use".into()));
    let list: Value = serde_json::from_str(&home.ok("profile list --json")).unwrap();
    assert_eq!(list["schema"], "unibus.cli.v1.profile_list");
    assert_eq!(list["profiles"][0]["nodes"].as_array().map(Vec::len), Some(2));
    home.ok("profile rm bob");
    assert_eq!(chosen(&home).0, "dev");
    assert!(home.path().join("alice.identity").exists());
}

#[test]
fn secrets_are_printed_nowhere() {
    let home = Home::new();
    let output = home.run("identity new bob --json");
    let file: Value =
        serde_json::from_str(&std::fs::read_to_string(home.path().join("bob.identity")).unwrap()).unwrap();
    let said = [output.stdout, output.stderr].concat();
    for secret in ["user_key", "device_key", "curve25519_key"] {
        let secret = file[secret].as_str().unwrap();
        assert!(!String::from_utf8_lossy(&said).contains(secret));
    }
}

#[test]
fn closed_pipe_ends_silently_as_done() {
    let home = Home::new();
    for line in ["completions bash", "--help"] {
        let mut child = home.command(line).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let status = child.wait().unwrap();
        let mut stderr = String::new();
        child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        assert_eq!((status.code(), stderr.as_str()), (Some(0), ""), "{line}");
    }
}

#[test]
fn completions_of_three_shells_know_the_commands() {
    let home = Home::new();
    for shell in ["bash", "zsh", "fish"] {
        let script = home.ok(&format!("completions {shell}"));
        for word in ["room", "publishers", "until-end", "reinstate"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
}

#[test]
fn input_that_is_not_read_does_not_keep_the_program() {
    let home = Home::with_dead_node();
    let mut child = home
        .command("pub ops.dpkg --lines --timeout 500ms")
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Kept open: nobody closes standard input.
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"line\n").unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(5));
    drop(stdin);
}
