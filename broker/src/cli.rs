//! The command line of `unibus-node`.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::config::Override;
use crate::plan::Host;

/// A node of a unibus cluster.
#[derive(Debug, Parser)]
#[command(name = "unibus-node", version, arg_required_else_help = true, after_help = EXAMPLES)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const EXAMPLES: &str = "\
Examples:
  unibus-node dev                                three real nodes on this machine, to try it out
  unibus-node plan cluster.toml --out plan/      ids, keys, certificates and a folder for each host
  unibus-node plan --out plan/ --add n4 --host 10.0.0.4 --replaces n3
  unibus-node check-config /etc/unibus/node.toml names what would keep the node from starting
  unibus-node run --config /etc/unibus/node.toml
  unibus-node admin add --config /etc/unibus/node.toml --key alice.pub

Exit codes: 0 done, 1 refused or failed, 2 usage. Then try: unibusctl status";

/// What `unibus-node` does.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run three real nodes on this machine, with a first admin and a client profile named "dev"
    Dev(Dev),
    /// From a list of hosts, mint a cluster: ids, keys, certificates and a folder for each host
    Plan(PlanArgs),
    /// Say what would keep a node from starting: keys, certificates, ports, names
    CheckConfig(CheckConfig),
    /// Run a node
    Run(Run),
    /// Admins of the cluster, through the local socket of a node that runs on this host
    #[command(subcommand)]
    Admin(Admin),
}

/// What `admin` does.
#[derive(Debug, Subcommand)]
pub enum Admin {
    /// Add an admin: the first one, who then adds the other users, or one more when all are lost
    Add(AdminAdd),
}

/// Arguments of `admin add`.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  unibusctl identity new alice
  unibus-node admin add --config /etc/unibus/node.toml --key alice.pub   as the node's user or root")]
pub struct AdminAdd {
    /// The configuration of the node on this host
    #[arg(long, env = "UNIBUS_NODE_CONFIG")]
    pub config: PathBuf,
    /// The admin's public card, made by `unibusctl identity new`
    #[arg(long, value_name = "FILE")]
    pub key: PathBuf,
}

/// Arguments of `dev`.
#[derive(Debug, Args)]
pub struct Dev {
    /// Where the nodes live; resumed when it is there
    #[arg(long, default_value = "./unibus-dev")]
    pub dir: PathBuf,
    /// Wipe the directory and begin anew
    #[arg(long)]
    pub fresh: bool,
    /// How many nodes
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=5))]
    pub nodes: u8,
}

/// Arguments of `plan`.
#[derive(Debug, Args)]
pub struct PlanArgs {
    /// The list of hosts. With more `[[node]]` than an existing plan has: the new ones are added to it. With the
    /// same: nothing is changed. A list that changes or lacks one of its nodes is refused
    #[arg(required_unless_present = "add")]
    pub cluster: Option<PathBuf>,
    /// Where to write: a new folder, or an existing plan that gets more nodes; never overwritten
    #[arg(long, default_value = "plan")]
    pub out: PathBuf,
    /// Add a node of this name to an existing plan; nothing else in it is touched
    #[arg(long, value_name = "NAME", requires = "host", conflicts_with = "cluster")]
    pub add: Option<String>,
    /// With --add: DNS name or IP address of the new node
    #[arg(long, requires = "add")]
    pub host: Option<String>,
    /// With --add: the node in whose place it comes
    #[arg(long, value_name = "NAME", requires = "add")]
    pub replaces: Option<String>,
    /// With --add: UDP port of the QUIC listener
    #[arg(long, value_name = "PORT", requires = "add")]
    pub peer_port: Option<u16>,
    /// With --add: TCP port of the gRPC listener
    #[arg(long, value_name = "PORT", requires = "add")]
    pub client_port: Option<u16>,
    /// With --add: TCP port of the admin listener, on loopback
    #[arg(long, value_name = "PORT", requires = "add")]
    pub admin_port: Option<u16>,
    /// With --add: where it keeps its data
    #[arg(long, value_name = "DIR", requires = "add")]
    pub data_dir: Option<PathBuf>,
}

impl PlanArgs {
    /// The host to add, if one is.
    pub fn new_host(&self) -> Option<Host> {
        let plain = Host::new(self.add.as_deref()?, self.host.as_deref()?);
        Some(Host {
            peer_port: self.peer_port.unwrap_or(plain.peer_port),
            client_port: self.client_port.unwrap_or(plain.client_port),
            admin_port: self.admin_port.unwrap_or(plain.admin_port),
            data_dir: self.data_dir.clone().unwrap_or_else(|| plain.data_dir.clone()),
            ..plain
        })
    }
}

/// Arguments of `check-config`.
#[derive(Debug, Args)]
pub struct CheckConfig {
    /// The node's configuration
    pub config: PathBuf,
}

/// Arguments of `run`. What is not given stands in the environment (`UNIBUS_NODE_*`) or in the file.
#[derive(Debug, Args)]
pub struct Run {
    /// The node's configuration
    #[arg(long, env = "UNIBUS_NODE_CONFIG")]
    pub config: PathBuf,
    /// Data directory
    #[arg(long)]
    pub data_dir: Option<String>,
    /// QUIC listener for the other nodes, address:port
    #[arg(long)]
    pub listen_peer: Option<String>,
    /// gRPC listener for clients, address:port
    #[arg(long)]
    pub listen_client: Option<String>,
    /// HTTP listener for health and metrics, address:port on loopback
    #[arg(long)]
    pub listen_admin: Option<String>,
    /// Log filter, e.g. "info" or "unibus_broker=debug"
    #[arg(long)]
    pub log: Option<String>,
    /// "text" or "json"
    #[arg(long)]
    pub log_format: Option<String>,
    /// Shut down when standard input ends: so that the nodes of `dev` never outlive it
    #[arg(long, hide = true)]
    pub exit_with_stdin: bool,
}

impl Run {
    /// The flags as overrides of the file.
    pub fn overrides(&self) -> Vec<Override> {
        let flags = [
            ("data_dir", &self.data_dir),
            ("listen.peer", &self.listen_peer),
            ("listen.client", &self.listen_client),
            ("listen.admin", &self.listen_admin),
            ("log", &self.log),
            ("log_format", &self.log_format),
        ];
        flags.into_iter().filter_map(|(key, value)| Some((key.into(), value.clone()?))).collect()
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn flags_become_overrides() {
        let cli = Cli::try_parse_from(["unibus-node", "run", "--config", "f", "--listen-admin", "127.0.0.1:1"]);
        let Command::Run(run) = cli.expect("parsed").command else { panic!("another command") };
        assert_eq!(run.overrides(), [("listen.admin".to_owned(), "127.0.0.1:1".to_owned())]);
    }

    #[test]
    fn no_option_takes_a_secret_and_one_that_is_offered_is_refused_and_not_repeated() {
        fn names(command: &clap::Command) -> Vec<String> {
            let own = command.get_arguments().map(|argument| argument.get_id().to_string());
            own.chain(command.get_subcommands().flat_map(names)).collect()
        }
        let words = ["password", "passphrase", "secret", "token", "private"];
        for name in names(&Cli::command()) {
            assert!(words.iter().all(|word| !name.contains(word)), "--{name} would put a secret into argv");
        }
        for word in words {
            let offered = format!("--{word}=hunter2");
            let refused = Cli::try_parse_from(["unibus-node", "run", "--config", "f", &offered]).expect_err("a secret");
            assert_eq!(refused.kind(), clap::error::ErrorKind::UnknownArgument);
            assert!(!refused.to_string().contains("hunter2"), "{refused}");
        }
    }
}
