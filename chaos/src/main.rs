//! `unibus-chaos`: runs seeds, or real processes, and judges them.
//!
//! Exit codes: 0 pass, 1 a promise is broken, 2 unknown (the run proves nothing), 3 harness error.

mod live;
mod sweep;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};
use unibus_chaos::plan::Plan;
use unibus_chaos::real::args::{Power, Real, parse_seed};
use unibus_chaos::run::{self, Report};
use unibus_chaos::scenario;
use unibus_chaos::sim::trace::Stamp;

/// Simulates whole unibus clusters under faults, seed by seed, and judges them.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs simulations: the real broker and the real SDK in virtual time.
    Sim(Sim),
    /// Cuts the power of real nodes under load, round by round.
    Power(Power),
    /// Plays a scripted scenario with real nodes; prints the result as JSON.
    #[command(subcommand)]
    Real(Real),
    /// Says whether this machine can cut the power of file systems.
    Doctor,
}

#[derive(Args, Clone)]
struct Sim {
    /// Runs this one seed, exactly as it ran before (decimal or 0x...).
    #[arg(long, value_parser = parse_seed, conflicts_with = "seeds")]
    seed: Option<u64>,
    /// Runs so many seeds, one process each.
    #[arg(long, default_value_t = 1)]
    seeds: u64,
    /// The first of them.
    #[arg(long, value_parser = parse_seed, default_value = "0")]
    first_seed: u64,
    /// Processes at a time.
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// Writes every event to this file.
    #[arg(long, requires = "seed")]
    trace: Option<PathBuf>,
    /// Runs each seed twice and compares the traces.
    #[arg(long, conflicts_with_all = ["seed", "trace"])]
    twice: bool,
    /// How long load and faults last, in virtual milliseconds.
    #[arg(long, default_value_t = unibus_chaos::plan::LOAD_MS)]
    load_ms: u64,
    /// Plays a scripted regression instead of the seed's plan.
    #[arg(long)]
    scenario: Option<Scenario>,
    /// Plants a bug, which must be caught.
    #[arg(long)]
    mutant: Option<Mutant>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Scenario {
    /// The leader's fsync is held, a publish is acknowledged through the followers, the leader loses
    /// power and restarts within its lease.
    LeaderRestore,
    /// A disk is lost, a new node takes its place, and whoever leads meta is killed again and again.
    NodeReplace,
    /// Leaders spread, clients publish to them without a detour, and a node that was killed gets its own back.
    SpreadLeaders,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Mutant {
    /// The write-ahead log answers before its fsync.
    AckBeforeFsync,
    /// Snapshots lack the producers.
    SnapshotWithoutProducers,
    /// `apply` walks a randomly keyed hash table.
    HashOrderInApply,
    /// A node that is cut off goes on deciding who may read and publish in ephemeral rooms.
    LeaseNeverLapses,
    /// A restarted leader leads on without a vote (needs no special build).
    EnableLeaderRestore,
}

impl Mutant {
    #[cfg(feature = "mutants")]
    fn plant(self) -> Result<(), String> {
        match self {
            Self::AckBeforeFsync => unibus_raft_store::mutants::enable("ack-before-fsync"),
            Self::SnapshotWithoutProducers => unibus_raft_store::mutants::enable("snapshot-without-producers"),
            Self::HashOrderInApply => {
                unibus_machine::mutants::enable(unibus_machine::mutants::HASH_ORDER_IN_APPLY);
            }
            Self::LeaseNeverLapses => unibus_raft_store::mutants::enable("lease-never-lapses"),
            Self::EnableLeaderRestore => {}
        }
        Ok(())
    }

    #[cfg(not(feature = "mutants"))]
    fn plant(self) -> Result<(), String> {
        if self == Self::EnableLeaderRestore {
            return Ok(());
        }
        Err("--mutant: this build has no planted bugs; build with `--features mutants`".into())
    }
}

/// What a value is called on the command line.
fn name(value: impl ValueEnum) -> String {
    value.to_possible_value().map_or_else(String::new, |value| value.get_name().to_string())
}

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Sim(sim) => simulate(&sim),
        Command::Power(args) => live::power(&args),
        Command::Real(scenario) => live::real(&scenario),
        Command::Doctor => live::doctor(),
    }
}

fn simulate(sim: &Sim) -> ExitCode {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_timer(VirtualTime)
        .with_ansi(false)
        .with_writer(std::io::stderr)
        .init();
    match sim.seed {
        Some(seed) => one(seed, sim),
        None => sweep::run(sim),
    }
}

/// Log lines carry virtual time.
struct VirtualTime;

impl tracing_subscriber::fmt::time::FormatTime for VirtualTime {
    fn format_time(&self, writer: &mut tracing_subscriber::fmt::format::Writer<'_>) -> std::fmt::Result {
        use unibus_chaos::sim::timer::SimInstant;
        write!(writer, "{}", Stamp(SimInstant::try_now().map_or(0, SimInstant::nanos)))
    }
}

fn one(seed: u64, sim: &Sim) -> ExitCode {
    if let Some(Err(why)) = sim.mutant.map(Mutant::plant) {
        eprintln!("{why}");
        return ExitCode::from(3);
    }
    let trace = sim.trace.as_deref();
    let report = match sim.scenario {
        Some(Scenario::LeaderRestore) => {
            scenario::leader_restore(seed, sim.mutant == Some(Mutant::EnableLeaderRestore), trace)
        }
        Some(Scenario::NodeReplace) => scenario::node_replace(seed, trace),
        Some(Scenario::SpreadLeaders) => scenario::spread_leaders(seed, trace),
        None => run::run(&sim.plan(seed), trace),
    };
    judge(seed, sim, &report)
}

fn judge(seed: u64, sim: &Sim, report: &Report) -> ExitCode {
    let verdict = match () {
        () if !report.violations.is_empty() => "FAILED",
        () if report.acked == 0 => "unknown: nothing was acknowledged",
        () => "passed",
    };
    let faults: Vec<_> = report.faults.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
    println!(
        "seed {seed:#x} {verdict}: trace {:016x} of {} events, {:.1} virtual s, {} acknowledged, {} unknown, {} read, \
         {} heard, faults: {}",
        report.digest.0,
        report.digest.1,
        report.virtual_nanos as f64 / 1e9,
        report.acked,
        report.unknown,
        report.read,
        report.heard,
        if faults.is_empty() { "none".into() } else { faults.join(", ") },
    );
    if report.violations.is_empty() {
        return ExitCode::from(if report.acked == 0 { 2 } else { 0 });
    }
    for violation in &report.violations {
        println!("  broken: {violation}");
    }
    println!("  last events:");
    report.last_events.iter().for_each(|event| println!("    {event}"));
    println!("  plan: {:?}", sim.plan(seed));
    println!("  replay: unibus-chaos sim --seed {seed:#x}{}", sim.arguments());
    ExitCode::from(1)
}

impl Sim {
    fn plan(&self, seed: u64) -> Plan {
        Plan::with_load(seed, self.load_ms)
    }

    /// The arguments that a run of one seed needs beside the seed.
    fn arguments(&self) -> String {
        let mut arguments = String::new();
        if let Some(scenario) = self.scenario {
            arguments += &format!(" --scenario {}", name(scenario));
        }
        if self.load_ms != unibus_chaos::plan::LOAD_MS {
            arguments += &format!(" --load-ms {}", self.load_ms);
        }
        if let Some(mutant) = self.mutant {
            arguments += &format!(" --mutant {}", name(mutant));
        }
        arguments
    }
}
