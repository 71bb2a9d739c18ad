//! `unibus-node` as a process: `dev` starts, heals, stops and resumes; errors name the remedy.
#![allow(clippy::disallowed_methods)] // Real processes and time.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use unibus_proto::files::Identity;
use unibus_proto::v1::DeviceKind;

const PATIENCE: Duration = Duration::from_secs(60);

fn program(home: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_unibus-node"));
    command.env("XDG_CONFIG_HOME", home).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begun.elapsed() < PATIENCE, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn signal(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(pid.try_into().expect("a pid")).expect("a pid");
    kill_process(pid, signal).expect("signalled");
}

/// A running `dev`, stopped at the latest with the test.
struct Dev {
    process: Child,
    home: PathBuf,
    dir: PathBuf,
}

impl Drop for Dev {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

impl Dev {
    fn start(root: &Path) -> Self {
        let (home, dir) = (root.join("home"), root.join("dev"));
        let profile = home.join("unibus/profiles/dev.json");
        fs::remove_file(&profile).ok();
        let process =
            program(&home).args(["dev", "--dir"]).arg(&dir).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let dev = Self { process: process.expect("started"), home, dir };
        until("the profile is written once all nodes are ready", || profile.exists().then_some(()));
        dev
    }

    fn pid(&self, node: &str) -> Option<u32> {
        fs::read_to_string(self.dir.join(node).join("pid")).ok()?.trim().parse().ok()
    }

    fn stop(mut self) {
        signal(self.process.id(), Signal::INT);
        let status = self.process.wait().expect("waited");
        assert!(status.success(), "{status}");
    }
}

fn is_running(pid: u32) -> bool {
    // A zombie has no command line.
    fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| !line.is_empty())
}

#[test]
fn dev_heals_stops_and_resumes() {
    let root = tempfile::tempdir().expect("a temporary directory");
    let dev = Dev::start(root.path());
    let identity = fs::read(dev.dir.join("admin.identity")).expect("the first admin");

    let second = program(&dev.home).args(["dev", "--dir"]).arg(&dev.dir).output().expect("run");
    assert!(failure(&second).contains("in use"), "{second:?}");

    let killed = dev.pid("n2").expect("a pid");
    let limits = fs::read_to_string(format!("/proc/{killed}/limits")).expect("the limits of a process");
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).expect("one of them");
    assert_eq!(core.split_whitespace().filter(|word| *word == "0").count(), 2, "{core}");
    signal(killed, Signal::KILL);
    let healed = until("n2 is started again", || dev.pid("n2").filter(|&pid| pid != killed && is_running(pid)));
    let pids: Vec<u32> = ["n1", "n3"].iter().filter_map(|node| dev.pid(node)).chain([healed]).collect();
    assert_eq!(pids.len(), 3);
    dev.stop();
    assert!(!pids.iter().any(|&pid| is_running(pid)), "nodes outlive dev");

    let resumed = Dev::start(root.path());
    assert_eq!(fs::read(resumed.dir.join("admin.identity")).expect("still there"), identity);
    // However dev ends, its nodes end too.
    let pids: Vec<u32> = ["n1", "n2", "n3"].iter().filter_map(|node| resumed.pid(node)).collect();
    signal(resumed.process.id(), Signal::KILL);
    until("the nodes end with a dev that was killed", || (!pids.iter().any(|&pid| is_running(pid))).then_some(()));
}

#[test]
fn an_admin_is_added_through_the_local_socket_of_a_node() {
    let root = tempfile::tempdir().expect("a temporary directory");
    let dev = Dev::start(root.path());
    let handle = "alice".parse().expect("a handle");
    let alice = Identity::generate(handle, DeviceKind::Person, 1, |bytes| bytes.fill(5));
    let key = root.path().join("alice.pub");
    alice.public_card().save(&key).expect("saved");
    let add = |node: &str| {
        let config = dev.dir.join(node).join("node.toml");
        program(&dev.home).args(["admin", "add", "--config"]).arg(config).arg("--key").arg(&key).output().expect("run")
    };
    for (node, words) in [("n2", "is an admin of the cluster now"), ("n3", "was an admin already")] {
        let added = add(node);
        assert!(added.status.success(), "{added:?}");
        let said = String::from_utf8_lossy(&added.stdout);
        assert!(said.contains(words) && said.contains(&alice.public_card().fingerprint()), "{said}");
        assert!(String::from_utf8_lossy(&added.stderr).contains("unibusctl profile add alice"), "{added:?}");
    }
    fs::write(&key, "no card").expect("written");
    assert!(failure(&add("n1")).contains("unibusctl identity new"));
    alice.public_card().save(&root.path().join("again.pub")).expect("saved");
    fs::rename(root.path().join("again.pub"), &key).expect("replaced");
    let (home, dir) = (dev.home.clone(), dev.dir.clone());
    dev.stop();
    let config = dir.join("n1/node.toml");
    let late =
        program(&home).args(["admin", "add", "--config"]).arg(config).arg("--key").arg(&key).output().expect("run");
    assert!(failure(&late).contains("the node does not run here"), "{late:?}");
}

fn failure(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn the_same_plan_again_changes_nothing_and_another_one_is_refused() {
    let root = tempfile::tempdir().expect("a temporary directory");
    let (cluster, out) = (root.path().join("cluster.toml"), root.path().join("plan"));
    let text = "[[node]]\nname = \"n1\"\nhost = \"10.0.0.1\"\n[[node]]\nname = \"n2\"\nhost = \"10.0.0.2\"\n";
    let plan = |text: &str| {
        fs::write(&cluster, text).expect("written");
        program(root.path()).arg("plan").arg(&cluster).arg("--out").arg(&out).output().expect("run")
    };
    assert!(plan(text).status.success());
    let files = || {
        ["ca/nodes.toml", "ca/peer-ca.key", "n1/node.toml", "n2/sign.key"]
            .map(|name| fs::read(out.join(name)).expect("there"))
    };
    let before = files();

    let again = plan(text);
    let said = String::from_utf8_lossy(&again.stdout).into_owned();
    assert!(
        again.status.success() && said.contains("nothing changed") && said.contains("never overwritten"),
        "{again:?}"
    );
    let refused = [
        (
            text.replace("10.0.0.2", "10.0.0.9"),
            vec!["n2", "peers at 10.0.0.9:7401", "peers at 10.0.0.2:7401", "--replaces n2"],
        ),
        (format!("{text}client_port = 9\n"), vec!["n2", "clients at 10.0.0.2:9", "clients at 10.0.0.2:7400"]),
        (format!("{text}data_dir = \"/mnt\"\n"), vec!["n2", "data_dir /mnt", "data_dir /var/lib/unibus"]),
        (format!("{text}admin_port = 9\n"), vec!["n2", "admin_port 9", "admin_port 7402"]),
        (text.replace("\"n2\"", "\"n3\""), vec!["no \"n2\"", "--replaces n2"]),
        (format!("shards = 9\n{text}"), vec!["shards: found 9, expected 8"]),
    ];
    for (text, expected) in refused {
        let why = failure(&plan(&text));
        assert!(expected.iter().all(|part| why.contains(part)), "{why}: expected {expected:?}");
    }
    assert!(before == files(), "the plan was touched");

    fs::create_dir(root.path().join("other")).expect("made");
    let other = program(root.path()).arg("plan").arg(&cluster).arg("--out").arg(root.path().join("other")).output();
    assert!(failure(&other.expect("run")).contains("never overwritten"), "a folder that is no plan");
}

#[test]
fn errors_name_what_and_the_remedy() {
    let root = tempfile::tempdir().expect("a temporary directory");
    let (home, cluster, out) = (root.path().join("home"), root.path().join("cluster.toml"), root.path().join("plan"));
    let taken = TcpListener::bind("127.0.0.1:0").expect("bound");
    let port = taken.local_addr().expect("bound").port();
    let text = format!(
        "[[node]]\nname = \"n1\"\nhost = \"127.0.0.1\"\npeer_port = 0\nclient_port = {port}\nadmin_port = 0\ndata_dir = \"d\"\n"
    );
    fs::write(&cluster, text).expect("written");
    let plan = || program(&home).arg("plan").arg(&cluster).arg("--out").arg(&out).output().expect("run");
    assert!(plan().status.success());

    let config = out.join("n1/node.toml");
    let run = program(&home).args(["run", "--config"]).arg(&config).output().expect("run");
    assert!(failure(&run).contains("choose another port"), "{run:?}");
    let check = program(&home).arg("check-config").arg(&config).output().expect("run");
    assert!(failure(&check).contains("listen.client"), "{check:?}");

    fs::remove_file(out.join("n1/sign.key")).expect("removed");
    let check = program(&home).arg("check-config").arg(&config).output().expect("run");
    assert!(failure(&check).contains("sign.key"), "{check:?}");
    let usage = program(&home).arg("rnu").output().expect("run");
    assert_eq!(usage.status.code(), Some(2));

    let foreign = root.path().join("precious");
    fs::create_dir(&foreign).expect("made");
    let fresh = program(&home).args(["dev", "--fresh", "--dir"]).arg(&foreign).output().expect("run");
    assert!(failure(&fresh).contains("not wiped") && foreign.exists(), "{fresh:?}");
}
