//! The subcommands that run real processes: a runtime, signals, exit codes.
#![allow(clippy::disallowed_methods, reason = "outside the simulation: real processes, real time")]

use std::process::ExitCode;

use tokio::signal::unix::{SignalKind, signal};
use unibus_chaos::real::args::{Power, Real};
use unibus_chaos::real::{away, doctor, full, power, tree};

const HARNESS_ERROR: u8 = 3;
const UNKNOWN: u8 = 2;

/// `doctor`.
pub fn doctor() -> ExitCode {
    doctor::enter_private_mounts();
    match doctor::power_cuts() {
        Ok(()) => println!("loop file systems whose power can be cut: ok"),
        Err(why) => {
            println!("SKIPPED: loop file systems whose power can be cut: {why}");
            return ExitCode::from(UNKNOWN);
        }
    }
    ExitCode::SUCCESS
}

/// `power`.
pub fn power(args: &Power) -> ExitCode {
    on_the_floor(async {
        let report = power::run(&args.config()).await?;
        if args.json {
            println!("{}", report.to_json());
        } else {
            println!("{}", report.to_text());
        }
        Ok(report.exit_code())
    })
}

/// `real`.
pub fn real(scenario: &Real) -> ExitCode {
    on_the_floor(async {
        let (result, code) = match scenario {
            Real::Away(args) => {
                let report = away::run(&args.config()).await?;
                (report.to_json(), report.exit_code())
            }
            Real::DiskFull(args) => {
                let report = full::run(&args.config()).await?;
                (report.to_json(), report.exit_code())
            }
            Real::Tree(args) => {
                let report = tree::run(&args.config()).await?;
                (report.to_json(), report.exit_code())
            }
        };
        println!("{result}");
        Ok(code)
    })
}

/// Runs `work` where there are loop file systems, until it or the user ends it. What it holds is dropped in
/// any case, and with it processes, mounts and files.
fn on_the_floor(work: impl Future<Output = Result<u8, String>>) -> ExitCode {
    doctor::enter_private_mounts();
    if let Err(why) = doctor::loop_disks() {
        println!("SKIPPED: {why}");
        return ExitCode::from(UNKNOWN);
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("start the runtime: {error}");
            return ExitCode::from(HARNESS_ERROR);
        }
    };
    let ended = runtime.block_on(async {
        tokio::select! {
            biased;
            signal = stopped() => Err(signal),
            ended = work => ended,
        }
    });
    ended.map_or_else(
        |why| {
            eprintln!("{why}");
            ExitCode::from(HARNESS_ERROR)
        },
        ExitCode::from,
    )
}

async fn stopped() -> String {
    let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return "no signal handler can be installed".into();
    };
    tokio::select! {
        biased;
        _ = interrupt.recv() => "interrupted".into(),
        _ = terminate.recv() => "terminated".into(),
    }
}
