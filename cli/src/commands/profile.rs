//! `profile`.

use std::path::Path;

use serde_json::{Value, json};
use unibus_proto::files::{FileError, Identity, Profile};

use crate::args::{Global, ProfileAddArgs, ProfileCommand};
use crate::exit::{Failure, Result};
use crate::output::Output;
use crate::profile::{Store, absolute};

/// Runs a command of `profile`.
pub fn run(command: &ProfileCommand, global: &Global, out: Output) -> Result<()> {
    let store = Store::of_user()?;
    match command {
        ProfileCommand::Add(args) => add(&store, args, out),
        ProfileCommand::List => list(&store, global, out),
        ProfileCommand::Use { name } => {
            store.set_current(name)?;
            out.either("profile_use", || json!({ "name": name }), || name.clone())?;
            out.hint(format!("profile {name} is used from now on\nnext: unibusctl whoami"));
            Ok(())
        }
        ProfileCommand::Show { name } => show(&store, name.as_deref(), global, out),
        ProfileCommand::Rm { name } => {
            store.remove(name)?;
            out.either("profile_rm", || json!({ "name": name }), || name.clone())?;
            out.hint(format!("profile {name} is forgotten; its identity file stays\nnext: unibusctl profile list"));
            Ok(())
        }
    }
}

fn add(store: &Store, args: &ProfileAddArgs, out: Output) -> Result<()> {
    for node in &args.node {
        check_address(node)?;
    }
    let identity = Identity::load(&args.identity).map_err(|error| {
        let remedy = match &error {
            FileError::Mode { path, .. } => format!("chmod 600 {}", path.display()),
            _ => "unibusctl identity new HANDLE makes one".into(),
        };
        Failure::local(format!("--identity: {error}")).remedy(remedy)
    })?;
    check_authority(&args.ca)?;
    let (identity_path, ca) = (absolute(&args.identity)?, absolute(&args.ca)?);
    let profile = Profile::new(identity_path, ca, args.node.clone());
    let replaced = store.save(&args.name, &profile)?;
    out.either("profile", || describe(&args.name, &profile), || args.name.clone())?;
    out.hint(format!(
        "profile {} {}: signs in as {} at {}\nnext: unibusctl --profile {} whoami",
        args.name,
        if replaced { "replaced" } else { "added" },
        identity.handle,
        args.node.join(", "),
        args.name,
    ));
    Ok(())
}

fn check_authority(path: &Path) -> Result<()> {
    let refused = |found: String| {
        let remedy = "the operator hands it out: client-ca.crt in each folder of `unibus-node plan`";
        Err(Failure::local(format!("--ca: {}: {found}", path.display())).remedy(remedy))
    };
    match std::fs::read_to_string(path) {
        Ok(text) if text.contains("-----BEGIN CERTIFICATE-----") => Ok(()),
        Ok(_) => refused("found no certificate, expected one in PEM".into()),
        Err(error) => refused(error.to_string()),
    }
}

fn check_address(address: &str) -> Result<()> {
    let port = address.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port.parse::<u16>());
    match port {
        Some(Ok(port)) if port > 0 => Ok(()),
        _ => Err(Failure::usage(format!("--node: found {address:?}, expected host:port, such as 10.0.0.1:7400"))),
    }
}

fn list(store: &Store, global: &Global, out: Output) -> Result<()> {
    let used = store.choose_name(global.profile.as_deref())?.map(|(name, _)| name);
    let mut rows = Vec::new();
    let mut objects = Vec::new();
    for name in store.names()? {
        let in_use = used.as_ref() == Some(&name);
        let profile = store.load(&name)?;
        let mut object = describe(&name, &profile);
        object["in_use"] = in_use.into();
        objects.push(object);
        let mark = if in_use { "*" } else { "" };
        rows.push(vec![mark.into(), name, profile.nodes.join(","), profile.identity.display().to_string()]);
    }
    if out.json {
        return out.object("profile_list", json!({ "profiles": objects }));
    }
    if rows.is_empty() {
        out.talk("no profiles\nnext: unibusctl profile add NAME --identity FILE --ca FILE --node HOST:PORT");
    }
    out.table(&["", "name", "nodes", "identity"], &rows)
}

fn show(store: &Store, name: Option<&str>, global: &Global, out: Output) -> Result<()> {
    let chosen = store.choose(name.or(global.profile.as_deref()))?;
    let source = if name.is_some() { "argument" } else { chosen.source.as_str() };
    let who = Identity::load(&chosen.profile.identity);
    if out.json {
        let mut object = describe(&chosen.name, &chosen.profile);
        object["source"] = source.into();
        object["handle"] = who.as_ref().ok().map(|identity| identity.handle.as_str()).into();
        return out.object("profile", object);
    }
    let row = |name: &str, value: String| vec![name.to_owned(), value];
    out.table(
        &["field", "value"],
        &[
            row("name", chosen.name.clone()),
            row("chosen by", source.into()),
            row("signs in as", who.map_or_else(|error| format!("unusable: {error}"), |id| id.handle.to_string())),
            row("nodes", chosen.profile.nodes.join(",")),
            row("identity", chosen.profile.identity.display().to_string()),
            row("ca", chosen.profile.ca.display().to_string()),
            row("file", store.path(&chosen.name).display().to_string()),
        ],
    )
}

fn describe(name: &str, profile: &Profile) -> Value {
    json!({
        "name": name,
        "nodes": profile.nodes,
        "identity_file": profile.identity.display().to_string(),
        "ca_file": profile.ca.display().to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        for address in ["127.0.0.1:7400", "[::1]:7400", "n1.example.org:1"] {
            assert!(check_address(address).is_ok(), "{address}");
        }
        for address in ["n1", ":7400", "n1:", "n1:0", "n1:70000"] {
            assert!(check_address(address).unwrap_err().message.contains("host:port"), "{address}");
        }
    }

    #[test]
    fn added_profile_has_absolute_paths_and_a_usable_identity() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::in_dir(dir.path());
        let out = Output { json: true, out_tty: false, err_tty: false };
        let (identity, ca) = (dir.path().join("a/../bob.identity"), dir.path().join("ca.pem"));
        std::fs::create_dir(dir.path().join("a")).unwrap();
        std::fs::write(&ca, "not PEM").unwrap();
        let mut args =
            ProfileAddArgs { name: "bob".into(), identity: identity.clone(), ca, node: vec!["127.0.0.1:1".into()] };
        let failure = add(&store, &args, out).unwrap_err();
        assert!(failure.remedy.is_some_and(|remedy| remedy.contains("identity new")));
        let bob = Identity::generate("bob".parse().unwrap(), unibus_proto::v1::DeviceKind::Person, 1, |b| b.fill(1));
        bob.save(&identity).unwrap();
        let failure = add(&store, &args, out).unwrap_err();
        assert!(failure.message.contains("found no certificate"), "{}", failure.message);
        std::fs::write(&args.ca, "-----BEGIN CERTIFICATE-----").unwrap();
        add(&store, &args, out).unwrap();
        let saved = store.load("bob").unwrap();
        assert!(saved.identity.is_absolute() && !saved.identity.to_string_lossy().contains(".."));
        args.node = vec!["nowhere".into()];
        assert_eq!(add(&store, &args, out).unwrap_err().exit, crate::exit::Exit::Usage);
    }
}
