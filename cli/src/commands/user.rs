//! `user` and `whoami`.

use serde_json::{Value, json};
use unibus_client::Client;
use unibus_proto::code::ErrorCode;
use unibus_proto::files::PublicCard;
use unibus_proto::signed::sha256;
use unibus_proto::v1::{User, UserRole, UserStatus};

use super::room::hex;
use crate::args::{Global, UserAddArgs, UserCommand};
use crate::exit::{Failure, Result};
use crate::output::{Output, thousands};
use crate::session::{During, Session, confirm};
use crate::time::rfc3339;

/// Runs a command of `user`.
pub async fn run(command: &UserCommand, global: &Global, out: Output) -> Result<()> {
    if let UserCommand::Add(args) = command {
        return add(args, global, out).await;
    }
    let client = Session::open(global, out)?.client;
    match command {
        UserCommand::Add(_) => Ok(()),
        UserCommand::List { limit } => list(&client, *limit as usize, out).await,
        UserCommand::Info { handle } => {
            let user = client.user(handle).await.during(format!("user {handle}"))?;
            show(&user, out)
        }
        UserCommand::Role { handle, role } => {
            let role = UserRole::from(*role);
            let user =
                client.set_user_role(handle, role).await.during(format!("make user {handle} {}", role_name(role)))?;
            changed(
                &user,
                &format!("{handle} is {} of the cluster", role_name(user.role())),
                "unibusctl user list",
                out,
            )
        }
        UserCommand::Revoke { handle } => {
            confirm(global, out, &format!("{handle} will lose all access, on open streams too"), handle.as_str())?;
            let user = client.revoke_user(handle).await.during(format!("revoke user {handle}"))?;
            let next = format!("unibusctl user reinstate {handle} undoes it");
            changed(&user, &format!("{handle} may not sign in any more"), &next, out)
        }
        UserCommand::Reinstate { handle } => {
            let user = client.reinstate_user(handle).await.during(format!("reinstate user {handle}"))?;
            changed(&user, &format!("{handle} may sign in again"), "unibusctl user list", out)
        }
    }
}

fn load_card(args: &UserAddArgs) -> Result<PublicCard> {
    let card = PublicCard::load(&args.key).map_err(|error| {
        Failure::local(format!("add user {}: --key {error}", args.handle))
            .remedy(format!("the user runs `unibusctl identity new {}` and hands over {0}.pub", args.handle))
    })?;
    if card.handle != args.handle {
        let message = format!("add user {}: {} is the card of {}", args.handle, args.key.display(), card.handle);
        return Err(Failure::local(message).remedy(format!(
            "unibusctl user add {} --key {}",
            card.handle,
            args.key.display()
        )));
    }
    Ok(card)
}

async fn add(args: &UserAddArgs, global: &Global, out: Output) -> Result<()> {
    let card = load_card(args)?;
    let client = Session::open(global, out)?.client;
    let answer = client.add_user(&card, args.role.into()).await.during(format!("add user {}", args.handle)).map_err(
        |failure| match failure.code == ErrorCode::AlreadyExists.as_str() {
            true => failure.remedy(format!("unibusctl user info {} shows the key that stands", args.handle)),
            false => failure,
        },
    )?;
    let user = answer.user.unwrap_or_default();
    out.either(
        "user_add",
        || {
            let mut value = describe(&user);
            value["created_now"] = answer.created.into();
            value["applied_index"] = answer.applied_index.into();
            value
        },
        || card.fingerprint(),
    )?;
    let what = if answer.created { "added" } else { "was there already" };
    out.hint(format!(
        "{} {what} as {}; holds on a majority of the nodes, index {} of meta\n\
         next: unibusctl room member add SUBJECT {0} --role reader",
        args.handle,
        role_name(user.role()),
        answer.applied_index,
    ));
    Ok(())
}

async fn list(client: &Client, limit: usize, out: Output) -> Result<()> {
    let mut users = client.list_users().await.during("list users")?;
    let total = users.len();
    users.truncate(limit);
    if out.json {
        let list: Vec<_> = users.iter().map(describe).collect();
        return out.object("user_list", json!({ "users": list, "more": total > limit }));
    }
    let row = |user: &User| {
        vec![
            user.handle.clone(),
            role_name(user.role()).into(),
            status_name(user.status()).into(),
            rfc3339(user.created_ms),
            fingerprint(user),
        ]
    };
    out.table(&["handle", "role", "status", "added", "key fingerprint"], &users.iter().map(row).collect::<Vec<_>>())?;
    if total > limit {
        out.talk(format!("showing {} of {}: --limit", thousands(limit as u64), thousands(total as u64)));
    }
    Ok(())
}

fn show(user: &User, out: Output) -> Result<()> {
    if out.json {
        return out.object("user", describe(user));
    }
    let row = |name: &str, value: String| vec![name.to_owned(), value];
    out.table(
        &["field", "value"],
        &[
            row("handle", user.handle.clone()),
            row("role", role_name(user.role()).into()),
            row("status", status_name(user.status()).into()),
            row("added", rfc3339(user.created_ms)),
            row("key fingerprint", fingerprint(user)),
        ],
    )
}

fn changed(user: &User, what: &str, next: &str, out: Output) -> Result<()> {
    out.either(
        "user",
        || describe(user),
        || format!("{}\t{}\t{}", user.handle, role_name(user.role()), status_name(user.status())),
    )?;
    out.hint(format!("{what}; holds on a majority of the nodes\nnext: {next}"));
    Ok(())
}

/// `whoami`.
pub async fn whoami(global: &Global, out: Output) -> Result<()> {
    let session = Session::open(global, out)?;
    let me = session.client.who_am_i().await.during("whoami")?;
    let chosen = &session.chosen;
    if out.json {
        return out.object(
            "whoami",
            json!({
                "user": me.user,
                "device": hex(&me.device_id),
                "role": me.role,
                "token_expires": rfc3339(me.expires_ms),
                "node_id": me.node_id,
                "cluster_id": session.client.cluster_id().to_string(),
                "profile": chosen.name,
                "profile_source": chosen.source.as_str(),
                "identity_file": chosen.profile.identity.display().to_string(),
            }),
        );
    }
    let row = |name: &str, value: String| vec![name.to_owned(), value];
    out.table(
        &["field", "value"],
        &[
            row("user", me.user),
            row("role", me.role),
            row("device", hex(&me.device_id)),
            row("cluster", session.client.cluster_id().to_string()),
            row("answered by", format!("node {}", me.node_id)),
            row("token until", rfc3339(me.expires_ms)),
            row("profile", format!("{} (by {})", chosen.name, chosen.source.as_str())),
            row("identity", chosen.profile.identity.display().to_string()),
        ],
    )
}

fn fingerprint(user: &User) -> String {
    hex(&sha256(&user.user_key))
}

/// The JSON shape of a user.
fn describe(user: &User) -> Value {
    json!({
        "handle": user.handle,
        "role": role_name(user.role()),
        "status": status_name(user.status()),
        "created": rfc3339(user.created_ms),
        "key_fingerprint": fingerprint(user),
    })
}

fn role_name(role: UserRole) -> &'static str {
    match role {
        UserRole::Unspecified => "none",
        UserRole::Member => "member",
        UserRole::Admin => "admin",
    }
}

fn status_name(status: UserStatus) -> &'static str {
    match status {
        UserStatus::Unspecified => "unknown",
        UserStatus::Active => "active",
        UserStatus::Revoked => "revoked",
    }
}

#[cfg(test)]
mod tests {
    use unibus_proto::files::Identity;
    use unibus_proto::v1::DeviceKind;

    use super::*;
    use crate::args::RoleArg;

    #[test]
    fn card_of_somebody_else_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let key = dir.path().join("bob.pub");
        let bob = Identity::generate("bob".parse().unwrap(), DeviceKind::Person, 1, |bytes| bytes.fill(3));
        bob.public_card().save(&key).unwrap();
        let mut args = UserAddArgs { handle: "bob".parse().unwrap(), key, role: RoleArg::Member };
        assert_eq!(load_card(&args).unwrap(), bob.public_card());
        args.handle = "rob".parse().unwrap();
        let failure = load_card(&args).unwrap_err();
        assert!(failure.message.contains("the card of bob"), "{}", failure.message);
        assert!(failure.remedy.is_some_and(|remedy| remedy.starts_with("unibusctl user add bob --key")));
        args.key = dir.path().join("none.pub");
        assert!(load_card(&args).unwrap_err().remedy.is_some_and(|remedy| remedy.contains("identity new rob")));
    }

    #[test]
    fn user_shape_has_the_fingerprint_that_the_card_shows() {
        let bob = Identity::generate("bob".parse().unwrap(), DeviceKind::Person, 1, |bytes| bytes.fill(3));
        let user = User {
            handle: "bob".into(),
            user_key: bob.public_card().user_key.to_vec().into(),
            role: UserRole::Admin.into(),
            status: UserStatus::Active.into(),
            created_ms: 0,
        };
        let value = describe(&user);
        assert_eq!(value["key_fingerprint"], bob.public_card().fingerprint());
        assert_eq!((value["role"].as_str(), value["status"].as_str()), (Some("admin"), Some("active")));
    }
}
