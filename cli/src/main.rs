//! `unibusctl`: publishes and reads messages; administers rooms, users and nodes.
//!
//! - [`args`] is the manual, [`commands`] what each command does;
//! - [`exit`] how the program ends, [`output`] where words go;
//! - [`profile`] where the cluster is and whom to sign in as;
//! - [`parse`], [`time`], [`lines`], [`pace`], [`ledger`]: small pure parts.

// A program that users run: real clocks, tasks and files. Nothing here runs in the simulator.
#![allow(clippy::disallowed_methods)]

mod args;
mod commands;
mod exit;
mod ledger;
mod lines;
mod output;
mod pace;
mod parse;
mod profile;
mod session;
mod time;

use std::process::ExitCode;

use crate::args::Cli;
use crate::exit::{Exit, Failure};
use crate::output::Output;

fn main() -> ExitCode {
    let cli = match Cli::parse_from_args(std::env::args_os()) {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let out = Output::new(cli.global.json);
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            out.failure(&Failure::local(format!("starting: {error}")));
            return ExitCode::from(Exit::Failed.number());
        }
    };
    let ended = runtime.block_on(Box::pin(commands::run(cli, out)));
    // A read of standard input may block for ever: it is not waited for.
    runtime.shutdown_background();
    match ended {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            out.failure(&failure);
            ExitCode::from(failure.exit.number())
        }
    }
}

/// Help and version go to standard output; wrong usage to standard error, as JSON if that was asked for.
fn usage(error: &clap::Error) -> ExitCode {
    let json = std::env::args_os().any(|argument| argument == "--json");
    if error.use_stderr() && json {
        let text = error.render().to_string();
        let message = text.lines().next().unwrap_or_default().trim_start_matches("error: ");
        let failure = Failure::usage(message);
        Output::new(true).failure(&failure);
    } else {
        // A closed pipe is no reason to fail: `unibusctl --help | head`.
        let _ = error.print();
    }
    ExitCode::from(if error.use_stderr() { Exit::Usage } else { Exit::Done }.number())
}
