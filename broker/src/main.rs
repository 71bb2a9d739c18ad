//! `unibus-node`: a node of a unibus cluster.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use unibus_broker::cli::{Admin, CheckConfig, Cli, Command, PlanArgs, Run};
use unibus_broker::env::SystemRng;
use unibus_broker::plan::{self, Plan, Tuning};
use unibus_broker::{config, dev, local_admin, resolve, run, telemetry};

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Dev(args) => block_on(dev::run(&args)),
        Command::Plan(args) => make_plan(&args),
        Command::CheckConfig(args) => check_config(&args),
        Command::Run(args) => run_node(&args),
        Command::Admin(Admin::Add(args)) => block_on(local_admin::run(&args)),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("unibus-node: {why}");
            ExitCode::FAILURE
        }
    }
}

fn block_on(work: impl Future<Output = Result<(), String>>) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| format!("start the runtime: {error}"))?;
    let outcome = runtime.block_on(work);
    // Reading standard input cannot be cancelled; nothing else is left to wait for.
    runtime.shutdown_background();
    outcome
}

fn make_plan(args: &PlanArgs) -> Result<(), String> {
    if let Some(host) = args.new_host() {
        let rng = SystemRng::default();
        let added = plan::add_host(&host, args.replaces.as_deref(), &args.out, &rng, &Tuning::default());
        let (plan, folders) = added.map_err(|error| error.to_string())?;
        return tell_added(&plan, &folders);
    }
    let Some(cluster) = &args.cluster else { return Err("name the list of hosts, or --add".into()) };
    let cluster = plan::read_cluster_file(cluster).map_err(|error| error.to_string())?;
    for warning in cluster.warnings() {
        eprintln!("warning: {warning}");
    }
    let out = &args.out;
    if plan::is_plan(out) {
        let extended = plan::extend(&cluster, out, &SystemRng::default(), &Tuning::default());
        let (plan, folders) = extended.map_err(|error| error.to_string())?;
        if folders.is_empty() {
            tell_unchanged(&plan, out);
        }
        return tell_added(&plan, &folders);
    }
    let plan = plan::write(&cluster, out, &SystemRng::default(), &Tuning::default()).map_err(|e| e.to_string())?;
    println!("cluster {}: {} nodes, {} shards, in {}", plan.cluster, plan.nodes.len(), plan.shards, out.display());
    for node in &plan.nodes {
        println!(
            "  {}  node {}: peers {}, clients {}",
            out.join(&node.name).display(),
            node.id,
            node.peer_address,
            node.client_address
        );
    }
    eprintln!(
        "Copy each folder to its host as /etc/unibus (it holds private keys), keep {} offline; README.txt in each\n\
         folder has the commands to run there. Then, on one of them, the first admin (unibusctl identity new HANDLE\n\
         makes HANDLE.pub):\n  \
         unibus-node admin add --config /etc/unibus/node.toml --key HANDLE.pub",
        out.join("ca").display()
    );
    Ok(())
}

fn tell_unchanged(plan: &Plan, out: &Path) {
    println!(
        "cluster {}: nothing changed: {} has all {} nodes of the list already, and is never overwritten",
        plan.cluster,
        out.display(),
        plan.nodes.len()
    );
    for node in plan.nodes.iter().filter(|node| !out.join(&node.name).exists()) {
        eprintln!("{} has no folder there: it was moved away, or the plan was interrupted", node.name);
    }
    eprintln!("For one more node, add a [[node]] or use --add NAME --host HOST; for another cluster, another --out.");
}

fn tell_added(plan: &Plan, folders: &[PathBuf]) -> Result<(), String> {
    for folder in folders {
        let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let added = plan.nodes.iter().find(|node| node.name == name);
        let (id, peer) = added.map_or((0, ""), |node| (node.id.0, node.peer_address.as_str()));
        println!("cluster {}: node {id} added, peers {peer}, in {}", plan.cluster, folder.display());
        eprintln!(
            "Copy the folder to its host as /etc/unibus; README.txt in it has the commands to run there. The node asks\n\
             to be taken in; then an admin runs one of:\n  \
             unibusctl node add {name}\n  unibusctl node replace OLD --with {name}"
        );
    }
    Ok(())
}

fn check_config(args: &CheckConfig) -> Result<(), String> {
    let path = &args.config;
    let overrides = config::env_overrides(std::env::vars()).map_err(|error| error.to_string())?;
    let file = config::load(path, &overrides).map_err(|error| error.to_string())?;
    let problems = match resolve::resolve(path, &file) {
        Ok(resolved) => resolve::check_surroundings(&resolved),
        Err(problems) => problems,
    };
    if problems.is_empty() {
        println!("{}: node {} ({}) would start", path.display(), file.node_id, file.name);
        return Ok(());
    }
    Err(listed(path, &problems))
}

fn run_node(args: &Run) -> Result<(), String> {
    let path = &args.config;
    let from_env = config::env_overrides(std::env::vars()).map_err(|error| error.to_string())?;
    let from_flags = args.overrides();
    let file = config::load(path, &[&from_env[..], &from_flags].concat()).map_err(|error| error.to_string())?;
    let mut resolved = resolve::resolve(path, &file).map_err(|problems| listed(path, &problems))?;
    resolved.effective = config::effective(path, &file, &from_env, &from_flags).map_err(|error| error.to_string())?;
    telemetry::start(file.log.as_deref(), resolve::log_format(&file)?)?;
    telemetry::abort_on_panic();
    let with_stdin = args.exit_with_stdin;
    block_on(run::run(resolved, async move {
        if let Err(error) = run::stop_requested(with_stdin).await {
            tracing::error!(%error, "listen for signals");
        }
    }))
}

fn listed(path: &Path, problems: &[String]) -> String {
    let all: Vec<String> = problems.iter().map(|problem| format!("\n  - {problem}")).collect();
    format!("{} would keep the node from starting:{}", path.display(), all.concat())
}
