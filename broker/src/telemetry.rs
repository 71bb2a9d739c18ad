//! Logs to stderr, and the end of the process when a task panics.
#![allow(clippy::disallowed_methods)] // Production only.

use std::io::IsTerminal;
use std::panic;
use std::process;

use tracing_subscriber::EnvFilter;

/// What is logged when nothing else is asked for.
pub const DEFAULT_FILTER: &str = "info,openraft=error";

/// How logs look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// Starts logging. The error names the filter that cannot be understood.
pub fn start(filter: Option<&str>, format: LogFormat) -> Result<(), String> {
    let text = filter.unwrap_or(DEFAULT_FILTER);
    let filter = EnvFilter::try_new(text)
        .map_err(|error| format!("log: found {text:?}, expected a filter such as \"info\": {error}"))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = match format {
        LogFormat::Text => builder.with_ansi(std::io::stderr().is_terminal()).try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
    started.map_err(|error| format!("start logging: {error}"))
}

/// A panic anywhere ends the process: a node that has lost one of its tasks is worse than none.
pub fn abort_on_panic() {
    let report = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        report(info);
        tracing::error!("{info}: this is a defect of unibus-node, and the process ends");
        process::abort();
    }));
}
