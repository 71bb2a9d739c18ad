//! What a run prints.

use hdrhistogram::Histogram;
use serde_json::{Map, Value};
use std::time::Duration;

use super::compare::{self, Earlier};
use super::measure::{Measured, QUANTILES};
use crate::args::BenchEarlier;
use crate::exit::Result;
use crate::output::{Output, bytes, with_schema};
use crate::time::human;

/// The report of a run.
pub struct Report {
    schema: &'static str,
    fields: Map<String, Value>,
    headline: String,
    latency: Option<Histogram<u64>>,
    notes: Vec<String>,
}

impl Report {
    /// A report of `unibus.cli.v1.<schema>`, with a line for people.
    pub fn new(schema: &'static str, headline: String) -> Self {
        let version = ("version".into(), env!("CARGO_PKG_VERSION").into());
        Self { schema, fields: Map::from_iter([version]), headline, latency: None, notes: Vec::new() }
    }

    /// A setting or a figure.
    pub fn set(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.fields.insert(name.into(), value.into());
        self
    }

    /// The distribution of latencies.
    pub fn latency(mut self, measured: &Measured) -> Self {
        self.latency = Some(measured.latency.clone());
        self.set("latency_us", measured.latency_json())
    }

    /// Something to know about the figures.
    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.notes.push(note.into());
        self
    }

    /// Prints it, and how it compares; an error when it got worse than the earlier run.
    pub fn print(self, earlier: &BenchEarlier, out: Output) -> Result<()> {
        let fields = self.fields.clone();
        let whole = with_schema(self.schema, Value::Object(fields));
        let read = earlier.compare.as_deref().map(Earlier::read).transpose();
        let compared = read.and_then(|read| read.map(|read| read.compare(&whole, earlier.tolerance)).transpose());
        if out.json {
            let mut value = whole;
            if let Ok(Some(compared)) = &compared {
                value["compared"] = compare::describe(compared);
            }
            out.line(&value.to_string())?;
        } else {
            self.print_text(out)?;
        }
        match compared? {
            Some(compared) => compare::judge(&compared, out),
            None => Ok(()),
        }
    }

    fn print_text(&self, out: Output) -> Result<()> {
        out.line(&self.headline)?;
        if let Some(latency) = self.latency.as_ref().filter(|latency| !latency.is_empty()) {
            let row = |name: &str, us: u64| vec![name.to_owned(), human(Duration::from_micros(us))];
            let mut rows: Vec<_> =
                QUANTILES.iter().map(|(name, at)| row(name, latency.value_at_quantile(*at))).collect();
            rows.push(row("max", latency.max()));
            out.table(&["latency", ""], &rows)?;
        }
        self.notes.iter().for_each(|note| out.hint(note));
        Ok(())
    }
}

/// `12.3 MiB/s` of messages per second.
pub fn volume(per_second: f64, size: usize) -> String {
    format!("{}/s", bytes((per_second * size as f64) as u64))
}
