//! The same seed gives the same run, to the last event; and a few short seeds hold every promise.

use std::process::Command;

/// One process per seed, as in every sweep: statics and thread-locals of one run touch no other.
fn sweep(arguments: &[&str]) -> (bool, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_unibus-chaos")).arg("sim").args(arguments).output();
    let output = output.expect("the binary was built for this test");
    (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn twenty_seeds_run_twice_have_equal_traces_and_pass() {
    let (passed, output) = sweep(&["--seeds", "20", "--twice", "--load-ms", "700", "--jobs", "2"]);
    assert!(passed, "{output}");
    assert!(output.contains("20 passed"), "{output}");
}

#[test]
fn the_leader_restore_regression_passes_and_its_bug_is_caught() {
    let (passed, output) = sweep(&["--seed", "2", "--scenario", "leader-restore"]);
    assert!(passed, "{output}");
    let (passed, output) = sweep(&["--seed", "2", "--scenario", "leader-restore", "--mutant", "enable-leader-restore"]);
    let forked = ["broken: I1 ", "broken: I2 "].iter().any(|broken| output.contains(broken));
    assert!(!passed && forked, "{output}");
}

#[test]
fn a_lost_node_is_replaced_while_whoever_reconciles_dies() {
    let (passed, output) = sweep(&["--seed", "2", "--scenario", "node-replace"]);
    assert!(passed && output.contains("reconciler-killed 3"), "{output}");
}

#[test]
fn leaders_are_spread_clients_go_to_them_and_a_node_that_comes_back_gets_its_own() {
    let (passed, output) = sweep(&["--first-seed", "3", "--seeds", "2", "--scenario", "spread-leaders"]);
    assert!(passed && output.contains("2 passed"), "{output}");
}

#[test]
fn a_planted_bug_needs_a_build_that_has_it() {
    if cfg!(feature = "mutants") {
        return;
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_unibus-chaos"));
    let output = command.args(["sim", "--seed", "1", "--mutant", "ack-before-fsync"]).output();
    assert_eq!(output.expect("the binary was built for this test").status.code(), Some(3));
}
