//! From a list of hosts to folders that start, and what a configuration is refused for.
#![allow(clippy::disallowed_methods)] // Files and ports of this machine.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use unibus_broker::config::{self, ConfigError, NODE_KEYS, NodeFile};
use unibus_broker::env::SystemRng;
use unibus_broker::plan::{self, Host, PlanError, Tuning};
use unibus_broker::resolve;

const CLUSTER: &str = r#"
shards = 4
[[node]]
name = "n1"
host = "127.0.0.1"
peer_port = 17401
client_port = 17400
admin_port = 17402
data_dir = "data"
[[node]]
name = "n2"
host = "b.example.org"
[[node]]
name = "n3"
host = "::1"
"#;

struct Planned {
    dir: tempfile::TempDir,
    out: PathBuf,
    plan: plan::Plan,
}

fn planned() -> Planned {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = dir.path().join("cluster.toml");
    fs::write(&file, CLUSTER).expect("written");
    let cluster = plan::read_cluster_file(&file).expect("read");
    let out = dir.path().join("plan");
    let plan = plan::write(&cluster, &out, &SystemRng::default(), &Tuning::default()).expect("planned");
    Planned { dir, out, plan }
}

fn walk(dir: &Path, see: &mut impl FnMut(&Path, &fs::Metadata)) {
    for entry in fs::read_dir(dir).expect("a directory") {
        let path = entry.expect("an entry").path();
        let metadata = fs::metadata(&path).expect("there");
        see(&path, &metadata);
        if metadata.is_dir() {
            walk(&path, see);
        }
    }
}

fn load(folder: &Path) -> (PathBuf, NodeFile) {
    let path = folder.join("node.toml");
    let file = config::load(&path, &[]).expect("loaded");
    (path, file)
}

#[test]
fn each_node_gets_a_folder_that_resolves_to_the_same_plan() {
    let planned = planned();
    for (name, node) in ["n1", "n2", "n3"].into_iter().zip(&planned.plan.nodes) {
        let (path, file) = load(&planned.out.join(name));
        let resolved = resolve::resolve(&path, &file).unwrap_or_else(|problems| panic!("{name}: {problems:?}"));
        assert_eq!((resolved.node, &resolved.plan), (node.id, &planned.plan));
        assert_eq!(resolved.plan.hash(), planned.plan.hash());
        assert_eq!(resolved.sign_key.verifying_key().to_bytes(), node.sign_key);
    }
    assert_eq!(planned.plan.nodes[1].client_address, "b.example.org:7400");
    assert_eq!(planned.plan.nodes[2].peer_address, "[::1]:7401");
    let other = plan::write(
        &plan::read_cluster_file(&planned.dir.path().join("cluster.toml")).expect("read"),
        &planned.dir.path().join("other"),
        &SystemRng::default(),
        &Tuning::default(),
    );
    assert_ne!(other.expect("planned").hash(), planned.plan.hash(), "two clusters of the same hosts are two");
}

#[test]
fn only_the_owner_can_read_a_plan() {
    let planned = planned();
    let mut files = 0;
    walk(&planned.out, &mut |path, metadata| {
        let expected = if metadata.is_dir() { 0o700 } else { 0o600 };
        assert_eq!(metadata.permissions().mode() & 0o777, expected, "{}", path.display());
        files += 1;
    });
    // The authorities' folder with its five files, and three nodes' with ten each.
    assert_eq!(files, 1 + 5 + 3 * (1 + 10));
}

#[test]
fn an_existing_output_is_left_alone() {
    let planned = planned();
    let cluster = plan::read_cluster_file(&planned.dir.path().join("cluster.toml")).expect("read");
    let before = fs::read(planned.out.join("n1/peer.key")).expect("there");
    let again = plan::write(&cluster, &planned.out, &SystemRng::default(), &Tuning::default());
    assert!(matches!(again, Err(PlanError::OutputExists(_))));
    assert_eq!(fs::read(planned.out.join("n1/peer.key")).expect("there"), before);
}

#[test]
fn a_plan_is_extended_without_touching_what_it_has() {
    let planned = planned();
    let mut before = Vec::new();
    walk(&planned.out, &mut |path, metadata| {
        if metadata.is_file() && !path.ends_with("ca/nodes.toml") {
            before.push((path.to_path_buf(), fs::read(path).expect("there")));
        }
    });
    let rng = SystemRng::default();
    let added = plan::add_host(&Host::new("n4", "10.0.0.4"), Some("n3"), &planned.out, &rng, &Tuning::default());
    let (plan, folders) = added.expect("added");
    assert_eq!(folders, [planned.out.join("n4")]);
    let (path, file) = load(&planned.out.join("n4"));
    let resolved = resolve::resolve(&path, &file).unwrap_or_else(|problems| panic!("{problems:?}"));
    assert!(resolved.join && resolved.node.0 == 4, "{:?}", resolved.node);
    let names: Vec<_> = resolved.plan.nodes.iter().map(|node| node.name.as_str()).collect();
    assert_eq!(names, ["n1", "n2", "n4"], "whom to ask, without the lost one");
    assert_eq!((resolved.plan.cluster, &resolved.plan.nodes[..2]), (planned.plan.cluster, &planned.plan.nodes[..2]));
    assert_eq!(plan, resolved.plan);

    // By one more [[node]]; n3 is gone from the list, and its id is not used again.
    let text = fs::read_to_string(planned.dir.path().join("cluster.toml")).expect("there");
    let text = text.replace("name = \"n3\"\nhost = \"::1\"", "name = \"n4\"\nhost = \"10.0.0.4\"");
    fs::write(
        planned.dir.path().join("more.toml"),
        format!("{text}[[node]]\nname = \"n5\"\nhost = \"e.example.org\"\n"),
    )
    .expect("written");
    let more = plan::read_cluster_file(&planned.dir.path().join("more.toml")).expect("read");
    let (plan, folders) = plan::extend(&more, &planned.out, &rng, &Tuning::default()).expect("extended");
    assert_eq!((folders, plan.nodes.last().map(|node| node.id.0)), (vec![planned.out.join("n5")], Some(5)));
    let ledger = || fs::read(planned.out.join("ca/nodes.toml")).expect("there");
    let minted = ledger();
    let again = plan::extend(&more, &planned.out, &rng, &Tuning::default()).expect("nothing to do");
    assert_eq!(again, (plan, Vec::new()));
    let old = plan::read_cluster_file(&planned.dir.path().join("cluster.toml")).expect("read");
    let error = plan::extend(&old, &planned.out, &rng, &Tuning::default()).expect_err("it lists n3").to_string();
    assert!(error.contains("\"n3\", which was replaced"), "{error}");
    assert!(ledger() == minted, "the ledger was touched");
    let twice = plan::add_host(&Host::new("n3", "10.0.0.9"), None, &planned.out, &rng, &Tuning::default());
    assert!(matches!(twice, Err(PlanError::Invalid { .. })), "{twice:?}");
    for (path, bytes) in before {
        assert!(fs::read(&path).expect("there") == bytes, "{} was touched", path.display());
    }
}

#[test]
fn the_unit_makes_its_data_directory_where_systemd_does() {
    let planned = planned();
    let unit = |name: &str| fs::read_to_string(planned.out.join(name).join("unibus-node.service")).expect("there");
    assert!(unit("n2").contains("\nStateDirectory=unibus\nStateDirectoryMode=0700\n"), "{}", unit("n2"));
    assert!(unit("n1").contains("\nReadWritePaths=/etc/unibus/data\n"), "{}", unit("n1"));
    assert!(!unit("n1").contains('@') || unit("n1").contains("SystemCallFilter=@system-service"));
    let readme = fs::read_to_string(planned.out.join("n1/README.txt")).expect("there");
    assert!(readme.contains("http://127.0.0.1:17402/readyz"), "{readme}");
}

#[test]
fn wrong_hosts_are_refused_by_name() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let cases = [
        (CLUSTER.replace("shards = 4", "shards = 0"), "shards: found 0, expected 1 to 64"),
        (CLUSTER.replace("\"n2\"", "\"n1\""), "\"n1\" twice"),
        (CLUSTER.replace("\"n2\"", "\"N 2\""), "\"N 2\""),
        (CLUSTER.replace("b.example.org", "https://b"), "a DNS name or an IP address"),
        ("node = []".into(), "0 nodes"),
    ];
    for (text, expected) in cases {
        let path = dir.path().join("cluster.toml");
        fs::write(&path, text).expect("written");
        let out = dir.path().join("out");
        let error = plan::read_cluster_file(&path)
            .map_err(|error| error.to_string())
            .and_then(|cluster| {
                plan::write(&cluster, &out, &SystemRng::default(), &Tuning::default()).map_err(|e| e.to_string())
            })
            .expect_err(expected);
        assert!(error.contains(expected), "{error:?} does not contain {expected:?}");
        assert!(!out.exists());
    }
}

#[test]
fn unknown_keys_are_errors_that_name_the_nearest() {
    let planned = planned();
    let path = planned.out.join("n1/node.toml");
    let text = fs::read_to_string(&path).expect("there");
    for (from, to, key, nearest) in [
        ("data_dir", "datadir", "datadir", "data_dir"),
        ("[listen]\npeer", "[listen]\npeeer", "listen.peeer", "listen.peer"),
        ("sign_key = \"sign.key\"", "signkey = \"sign.key\"", "tls.signkey", "tls.sign_key"),
        ("[cluster]", "[clutser]", "clutser", "cluster"),
    ] {
        assert!(text.contains(from), "{from} is not in\n{text}");
        let error = config::parse::<NodeFile>(&text.replacen(from, to, 1), &path, NODE_KEYS, &[]);
        match error.expect_err(to) {
            ConfigError::UnknownKey { key: found, suggestion, .. } => {
                assert_eq!(found, key);
                assert!(suggestion.contains(nearest) || nearest == "cluster", "{suggestion}");
            }
            other => panic!("{to}: {other}"),
        }
    }
}

#[test]
fn the_environment_rules_over_the_file_and_flags_over_both() {
    let planned = planned();
    let path = planned.out.join("n1/node.toml");
    let vars = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect::<Vec<_>>();
    let from_env = config::env_overrides(
        vars(&[
            ("UNIBUS_NODE_LISTEN_ADMIN", "127.0.0.1:1"),
            ("UNIBUS_NODE_TIMING_HEARTBEAT_MS", "50"),
            ("UNIBUS_NODE_DATA_DIR", "from-env"),
            ("UNIBUS_NODE_CONFIG", "ignored"),
            ("PATH", "ignored"),
        ])
        .into_iter(),
    );
    let mut overrides = from_env.expect("known");
    overrides.push(("data_dir".into(), "from-flag".into()));
    let file = config::load(&path, &overrides).expect("loaded");
    assert_eq!(file.listen.admin, "127.0.0.1:1");
    assert_eq!(file.data_dir, Path::new("from-flag"));
    assert_eq!(file.timing.and_then(|timing| timing.heartbeat_ms), Some(50));
    let unknown = config::env_overrides(vars(&[("UNIBUS_NODE_DATADIR", "x")]).into_iter()).expect_err("unknown");
    assert!(unknown.to_string().contains("did you mean \"UNIBUS_NODE_DATA_DIR\"?"), "{unknown}");
}

#[test]
fn every_key_says_where_its_value_comes_from_and_none_is_a_secret() {
    let planned = planned();
    let path = planned.out.join("n1/node.toml");
    let from_env = [("data_dir", "from-env"), ("timing.heartbeat_ms", "50"), ("log", "debug")];
    let from_env = from_env.map(|(key, value)| (key.to_string(), value.to_string()));
    let from_flags = [("data_dir".to_string(), "from-flag".to_string())];
    let file = config::load(&path, &[&from_env[..], &from_flags].concat()).expect("loaded");
    let values = config::effective(&path, &file, &from_env, &from_flags).expect("listed");
    let of = |key: &str| {
        let value = values.iter().find(|value| value.key == key).unwrap_or_else(|| panic!("{key} is missing"));
        (value.value.as_str(), value.origin.as_str())
    };
    assert_eq!(of("data_dir"), ("from-flag", "flag"));
    assert_eq!(of("log"), ("debug", "env"));
    assert_eq!(of("node_id"), ("1", "file"));
    assert_eq!(of("log_format"), ("text", "default"));
    assert_eq!(of("timing.heartbeat_ms"), ("50", "env"));
    assert_eq!(of("timing.election_min_ms"), ("150", "default"), "it follows from the heartbeat");
    assert_eq!(of("cluster.node[2].name"), ("n3", "file"));
    assert_eq!(of("tls.sign_key").0, "sign.key", "a path");
    for key in NODE_KEYS.iter().filter(|key| !key.contains("[]")) {
        let is_optional = key.starts_with("tls.") || *key == "listen.admin";
        assert!(is_optional || !of(key).0.is_empty(), "{key} has a value that nobody can see");
    }
    let seed = fs::read_to_string(planned.out.join("n1/sign.key")).expect("read");
    assert!(values.iter().all(|value| !value.value.contains(seed.trim())));
}

#[test]
fn everything_that_is_missing_is_named_at_once() {
    let planned = planned();
    let folder = planned.out.join("n1");
    fs::remove_file(folder.join("peer.crt")).expect("removed");
    fs::set_permissions(folder.join("client.key"), fs::Permissions::from_mode(0o644)).expect("set");
    fs::copy(planned.out.join("n2/sign.key"), folder.join("sign.key")).expect("copied");
    let (path, mut file) = load(&folder);
    file.listen.admin = "0.0.0.0:7402".into();
    let problems = resolve::resolve(&path, &file).err().expect("problems").join("\n");
    for expected in ["peer.crt", "chmod 600", "sign_key", "loopback"] {
        assert!(problems.contains(expected), "{expected} is not in\n{problems}");
    }
}

#[test]
fn another_nodes_certificate_is_noticed() {
    let planned = planned();
    let folder = planned.out.join("n1");
    for name in ["peer.crt", "peer.key"] {
        fs::copy(planned.out.join("n2").join(name), folder.join(name)).expect("copied");
    }
    let (path, file) = load(&folder);
    let problems = resolve::resolve(&path, &file).err().expect("problems");
    assert!(problems[0].contains("found node 2") && problems[0].contains("expected node 1"), "{problems:?}");
    fs::copy(planned.out.join("n1/client.key"), folder.join("peer.key")).expect("copied");
    let problems = resolve::resolve(&path, &file).err().expect("problems").join("\n");
    assert!(problems.contains("certificate and key belong together"), "{problems}");
}

#[test]
fn taken_ports_and_unknown_names_are_found_before_the_start() {
    let planned = planned();
    let (path, mut file) = load(&planned.out.join("n1"));
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
    file.listen.client = taken.local_addr().expect("bound").to_string();
    file.listen.peer = "127.0.0.1:0".into();
    file.listen.admin = "127.0.0.1:0".into();
    file.cluster.node[1].peer = "no-such-host.invalid:7401".into();
    let Ok(resolved) = resolve::resolve(&path, &file) else { panic!("not resolved") };
    let problems = resolve::check_surroundings(&resolved).join("\n");
    assert!(problems.contains("no-such-host.invalid") && problems.contains("listen.client"), "{problems}");
}

#[test]
fn what_others_could_read_is_refused_with_the_remedy() {
    let planned = planned();
    let (path, file) = load(&planned.out.join("n1"));
    resolve::resolve(&path, &file).map(drop).expect("fine as it was planned");
    let folder = planned.out.join("n1");
    let mode =
        |name: &str, mode| fs::set_permissions(folder.join(name), fs::Permissions::from_mode(mode)).expect("set");
    for key in ["peer.key", "client.key", "sign.key"] {
        mode(key, 0o640);
        let problems = resolve::resolve(&path, &file).map(drop).expect_err("readable by the group");
        assert!(problems.len() == 1 && problems[0].contains(key) && problems[0].contains("chmod 600"), "{problems:?}");
        mode(key, 0o400);
    }
    fs::create_dir(folder.join("data")).expect("made");
    mode("data", 0o750);
    let problems = resolve::resolve(&path, &file).map(drop).expect_err("the group may look into it");
    assert!(problems.len() == 1 && problems[0].contains("chmod 700"), "{problems:?}");
    mode("data", 0o700);
    let resolved = resolve::resolve(&path, &file).map_err(|problems| problems.join(", ")).expect("repaired");
    let names: Vec<&str> = resolved.certificates_expire.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, ["peer", "client"]);
}
