//! Many seeds, one child process each: a panic, a leak or a static of one run touches no other.
#![allow(clippy::disallowed_methods, reason = "the sweep is outside the simulation: real processes, real time")]

use std::process::{Command, ExitCode, Output, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::Sim;

/// A run of one seed takes seconds; this one hangs.
const PATIENCE: Duration = Duration::from_secs(600);

#[derive(Default)]
struct Tally {
    passed: u64,
    failed: Vec<u64>,
    unknown: Vec<u64>,
    errors: Vec<(u64, String)>,
}

/// Runs all seeds of `sim` and sums up.
pub fn run(sim: &Sim) -> ExitCode {
    let began = Instant::now();
    let next = AtomicU64::new(0);
    let tally = Mutex::new(Tally::default());
    std::thread::scope(|scope| {
        for _ in 0..sim.jobs.max(1) {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= sim.seeds {
                        return;
                    }
                    let seed = sim.first_seed.wrapping_add(number);
                    let outcome = child(seed, sim).and_then(|first| again(seed, sim, first));
                    let mut tally = tally.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                    count(&mut tally, seed, outcome);
                }
            });
        }
    });
    let tally = tally.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    println!(
        "{} seeds in {:.0} s: {} passed, {} failed {:x?}, {} unknown {:x?}, {} harness errors {:x?}",
        sim.seeds,
        began.elapsed().as_secs_f64(),
        tally.passed,
        tally.failed.len(),
        tally.failed,
        tally.unknown.len(),
        tally.unknown,
        tally.errors.len(),
        tally.errors,
    );
    // A harness error never hides a broken promise, and is never green.
    ExitCode::from(match tally {
        _ if !tally.failed.is_empty() => 1,
        _ if !tally.errors.is_empty() => 3,
        _ if !tally.unknown.is_empty() => 2,
        _ => 0,
    })
}

fn count(tally: &mut Tally, seed: u64, outcome: Result<Output, String>) {
    let output = match outcome {
        Ok(output) => output,
        Err(why) => return tally.errors.push((seed, why)),
    };
    print!("{}", String::from_utf8_lossy(&output.stdout));
    match output.status.code() {
        Some(0) => tally.passed += 1,
        Some(1) => tally.failed.push(seed),
        Some(2) => tally.unknown.push(seed),
        _ => {
            print!("{}", String::from_utf8_lossy(&output.stderr));
            tally.errors.push((seed, format!("the run ended with {}", output.status)));
        }
    }
}

/// Runs the seed once more when the sweep asks for it: the same output, trace hash included, or the run
/// proves nothing.
fn again(seed: u64, sim: &Sim, first: Output) -> Result<Output, String> {
    if !sim.twice {
        return Ok(first);
    }
    let second = child(seed, sim)?;
    if first.stdout == second.stdout {
        return Ok(first);
    }
    let line = |output: &Output| String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().to_owned();
    Err(format!("two runs differ: {} | {}", line(&first), line(&second)))
}

fn child(seed: u64, sim: &Sim) -> Result<Output, String> {
    let program = std::env::current_exe().map_err(|error| format!("find this program: {error}"))?;
    let mut command = Command::new(program);
    command.args(["sim", "--seed", &seed.to_string()]).args(sim.arguments().split_whitespace());
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = child.map_err(|error| format!("start a child: {error}"))?;
    let began = Instant::now();
    // Its output is small until it ends, so the pipes do not fill meanwhile.
    while child.try_wait().map_err(|error| format!("wait for a child: {error}"))?.is_none() {
        if began.elapsed() > PATIENCE {
            child.kill().map_err(|error| format!("kill a child: {error}"))?;
            let _ = child.wait();
            return Err(format!("no end after {PATIENCE:?}"));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    child.wait_with_output().map_err(|error| format!("read a child's output: {error}"))
}
