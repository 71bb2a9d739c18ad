//! A plan that is in use gets one more node: same authorities, same cluster, the next id that was never
//! used. What was written before is not touched, except for the ledger of all nodes ever minted. A list of
//! hosts that says otherwise of a node that was minted is refused.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use unibus_proto::id::{ClusterId, NodeId};
use unibus_raft_store::env::Rng;

use super::folder::{NewNode, write_file};
use super::{ClusterFile, Host, Plan, PlanError, PlanNode, Tuning, mint_node};
use crate::certs::Authority;
use crate::config::{self, NodeSection};
use crate::tls;

const LEDGER: &str = "ca/nodes.toml";
const LEDGER_HEAD: &str = "# All nodes that were ever minted for this cluster: ids are never used again.\n";

/// All nodes that were ever minted for a cluster.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Ledger {
    cluster: String,
    shards: u32,
    node: Vec<LedgerNode>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct LedgerNode {
    id: u64,
    name: String,
    peer: String,
    client: String,
    sign_key: String,
    /// Not told to other nodes: here to notice when the list of hosts says otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    admin_port: Option<u16>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    data_dir: Option<PathBuf>,
    /// Another one was minted in its place: new nodes need not know it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    replaced: bool,
}

impl LedgerNode {
    fn new(node: &PlanNode, host: &Host) -> Self {
        let NodeSection { id, name, peer, client, sign_key } = NodeSection::from(node);
        let (admin_port, data_dir) = (Some(host.admin_port), Some(host.data_dir.clone()));
        Self { id, name, peer, client, sign_key, admin_port, data_dir, replaced: false }
    }

    /// What a list of hosts says otherwise of this node: found, expected.
    fn differs(&self, host: &Host) -> Option<(String, String)> {
        let address = |port| config::join_address(&host.host, port);
        let text = |what: &str, value: String| format!("{what} {value}");
        let port = |port: u16| text("admin_port", port.to_string());
        let dir = |dir: &PathBuf| text("data_dir", dir.display().to_string());
        let pairs = [
            (text("peers at", address(host.peer_port)), Some(text("peers at", self.peer.clone()))),
            (text("clients at", address(host.client_port)), Some(text("clients at", self.client.clone()))),
            (port(host.admin_port), self.admin_port.map(port)),
            (dir(&host.data_dir), self.data_dir.as_ref().map(dir)),
        ];
        let mut differing = pairs.into_iter().filter_map(|(found, minted)| Some((found, minted?)));
        differing.find(|(found, minted)| found != minted)
    }

    fn section(&self) -> NodeSection {
        let Self { id, name, peer, client, sign_key, .. } = self.clone();
        NodeSection { id, name, peer, client, sign_key }
    }
}

/// Whether there is a plan in `out` that can be extended.
pub fn is_plan(out: &Path) -> bool {
    out.join(LEDGER).exists()
}

/// Adds the hosts of a `cluster.toml` that the plan in `out` does not have yet; when it has them all, nothing
/// is changed. What the file says of the others must be what was minted.
pub fn extend(
    cluster: &ClusterFile,
    out: &Path,
    rng: &impl Rng,
    tuning: &Tuning,
) -> Result<(Plan, Vec<PathBuf>), PlanError> {
    cluster.check()?;
    let ledger = Ledger::load(out)?;
    let is_known = |host: &&Host| ledger.node.iter().any(|known| known.name == host.name);
    let new: Vec<&Host> = cluster.node.iter().filter(|host| !is_known(host)).collect();
    ledger.agrees_with(cluster)?;
    if new.is_empty() {
        return Ok((ledger.plan(out)?, Vec::new()));
    }
    add(ledger, out, &new, None, rng, tuning)
}

/// Adds one host to the plan in `out`, in place of the node named `replaces`, if one is.
pub fn add_host(
    host: &Host,
    replaces: Option<&str>,
    out: &Path,
    rng: &impl Rng,
    tuning: &Tuning,
) -> Result<(Plan, Vec<PathBuf>), PlanError> {
    let ledger = Ledger::load(out)?;
    host.check()?;
    let known = |name: &str| ledger.node.iter().any(|known| known.name == name);
    if known(&host.name) {
        return invalid("--add", format!("{:?}, which was minted before", host.name), "a name of its own");
    }
    if let Some(replaces) = replaces.filter(|name| !known(name)) {
        let names: Vec<&str> = ledger.node.iter().map(|known| known.name.as_str()).collect();
        return invalid("--replaces", format!("{replaces:?}"), &format!("a node of the plan: {}", names.join(", ")));
    }
    add(ledger, out, &[host], replaces, rng, tuning)
}

fn add(
    mut ledger: Ledger,
    out: &Path,
    hosts: &[&Host],
    replaced: Option<&str>,
    rng: &impl Rng,
    tuning: &Tuning,
) -> Result<(Plan, Vec<PathBuf>), PlanError> {
    #[allow(clippy::disallowed_methods)] // A tool for operators; simulations do not mint certificates.
    let now = SystemTime::now();
    let cluster = ledger.cluster_id(out)?;
    let authorities =
        [Authority::load(cluster, "peer", &out.join("ca"))?, Authority::load(cluster, "client", &out.join("ca"))?];
    for known in ledger.node.iter_mut().filter(|known| replaced == Some(&known.name)) {
        known.replaced = true;
    }
    let mut minted = Vec::new();
    for host in hosts {
        let id = NodeId(ledger.node.iter().map(|known| known.id).max().unwrap_or(0) + 1);
        let (node, key) = mint_node(host, id, rng);
        ledger.node.push(LedgerNode::new(&node, host));
        minted.push((host, node, key));
    }
    let plan = ledger.plan(out)?;
    // The id is used up before anything that carries it exists.
    ledger.save(out)?;
    let mut folders = Vec::new();
    for (host, node, key) in &minted {
        let new = NewNode { plan: &plan, host, node, key, join: true };
        folders.push(new.write(out, &authorities, now, tuning)?);
    }
    Ok((plan, folders))
}

impl Ledger {
    /// Of a plan that was just minted.
    pub fn of(plan: &Plan, hosts: &[Host]) -> Self {
        Self {
            cluster: plan.cluster.to_string(),
            shards: plan.shards,
            node: plan.nodes.iter().zip(hosts).map(|(node, host)| LedgerNode::new(node, host)).collect(),
        }
    }

    fn load(out: &Path) -> Result<Self, PlanError> {
        let path = out.join(LEDGER);
        let unreadable = |cause: String| PlanError::Ledger { path: path.clone(), cause };
        let text = fs::read_to_string(&path).map_err(|error| unreadable(error.to_string()))?;
        toml::from_str(&text).map_err(|error| unreadable(error.to_string()))
    }

    /// Whether a list of hosts says of the nodes that were minted what they are: each host runs with the
    /// folder that it was given, so the list cannot change it.
    fn agrees_with(&self, cluster: &ClusterFile) -> Result<(), PlanError> {
        if cluster.shards != self.shards {
            let expected = format!("{}, which is fixed for the cluster's life", self.shards);
            return invalid("shards", cluster.shards.to_string(), &expected);
        }
        for known in &self.node {
            let (name, listed) = (&known.name, cluster.node.iter().find(|host| host.name == known.name));
            let instead = format!("or another one in its place: --add NAME --host HOST --replaces {name}");
            match listed.map(|host| known.differs(host)) {
                Some(_) if known.replaced => {
                    return invalid("[[node]]", format!("{name:?}, which was replaced"), "a node that was not");
                }
                None if !known.replaced => {
                    let expected = format!("{name:?}, which was minted, {instead}");
                    return invalid("[[node]]", format!("no {name:?}"), &expected);
                }
                Some(Some((found, minted))) => {
                    let expected = format!("{minted}, as it was minted, {instead}");
                    return invalid(&format!("[[node]] {name:?}"), found, &expected);
                }
                Some(None) | None => {}
            }
        }
        Ok(())
    }

    /// Writes it so that it is there whole or as it was before.
    pub fn save(&self, out: &Path) -> Result<(), PlanError> {
        let (path, new) = (out.join(LEDGER), out.join("ca/nodes.toml.new"));
        let failed = |cause| PlanError::Write { path: path.clone(), cause };
        match fs::remove_file(&new) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let text = toml::to_string(self).expect("plain tables of strings and numbers");
        write_file(&new, format!("{LEDGER_HEAD}{text}").as_bytes())?;
        fs::rename(&new, &path).map_err(failed)
    }

    fn cluster_id(&self, out: &Path) -> Result<ClusterId, PlanError> {
        let unreadable = |_| PlanError::Ledger { path: out.join(LEDGER), cause: "no cluster id".into() };
        self.cluster.parse().map_err(unreadable)
    }

    /// The nodes that were not replaced.
    fn plan(&self, out: &Path) -> Result<Plan, PlanError> {
        let unreadable = |what: &str| PlanError::Ledger { path: out.join(LEDGER), cause: what.into() };
        let mut nodes = Vec::new();
        for known in self.node.iter().filter(|known| !known.replaced) {
            nodes.push(config::plan_node(&known.section()).map_err(|error| unreadable(&error.to_string()))?);
        }
        nodes.sort_by_key(|node| node.id);
        Ok(Plan { cluster: self.cluster_id(out)?, shards: self.shards, nodes })
    }
}

fn invalid<T>(what: &str, found: String, expected: &str) -> Result<T, PlanError> {
    Err(PlanError::Invalid { what: what.into(), found, expected: expected.into() })
}

impl Authority {
    /// An authority as `plan` wrote it into the folder `ca`.
    fn load(cluster: ClusterId, purpose: &str, ca: &Path) -> Result<Self, PlanError> {
        let (cert, key) = (ca.join(format!("{purpose}-ca.crt")), ca.join(format!("{purpose}-ca.key")));
        let unreadable = |path: &Path, cause: String| PlanError::Ledger { path: path.into(), cause };
        let cert_pem = fs::read_to_string(&cert).map_err(|error| unreadable(&cert, error.to_string()))?;
        let key_pem = tls::read_private(&key).map_err(|error| unreadable(&key, error.to_string()))?;
        let key_text = std::str::from_utf8(&key_pem).map_err(|error| unreadable(&key, error.to_string()))?;
        Ok(Self::from_pem(cluster, purpose, cert_pem, key_text)?)
    }
}
