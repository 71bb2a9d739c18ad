//! `identity`.

use ring::rand::{SecureRandom, SystemRandom};
use serde_json::json;
use unibus_proto::files::{FileError, Identity};

use crate::args::{IdentityCommand, IdentityNewArgs};
use crate::exit::{Failure, Result};
use crate::output::Output;
use crate::time;

/// Runs a command of `identity`.
pub fn run(command: &IdentityCommand, out: Output) -> Result<()> {
    match command {
        IdentityCommand::New(args) => new(args, out),
    }
}

fn new(args: &IdentityNewArgs, out: Output) -> Result<()> {
    let random = SystemRandom::new();
    let identity = Identity::generate(args.handle.clone(), args.kind.into(), time::now_ms(), |bytes| {
        random.fill(bytes).expect("the operating system has randomness");
    });
    let card = identity.public_card();
    let (secret_path, card_path) =
        (args.out.join(format!("{}.identity", args.handle)), args.out.join(format!("{}.pub", args.handle)));
    if card_path.exists() {
        return Err(refused(&FileError::Exists { path: card_path }));
    }
    identity.save(&secret_path).map_err(|error| refused(&error))?;
    card.save(&card_path).map_err(|error| refused(&error))?;
    let fingerprint = card.fingerprint();
    out.either(
        "identity",
        || {
            json!({
                "handle": args.handle.as_str(),
                "device": identity.device_id().to_string(),
                "fingerprint": fingerprint,
                "identity_file": secret_path.display().to_string(),
                "card_file": card_path.display().to_string(),
            })
        },
        || fingerprint.clone(),
    )?;
    out.hint(format!(
        "wrote {} (secret, mode 0600: keep it, it cannot be restored) and {} (public)\n\
         next, an admin runs: unibusctl user add {} --key {}",
        secret_path.display(),
        card_path.display(),
        args.handle,
        card_path.display(),
    ));
    Ok(())
}

fn refused(error: &FileError) -> Failure {
    let failure = Failure::local(format!("new identity: {error}"));
    match error {
        FileError::Exists { .. } => failure.remedy("unibusctl identity new HANDLE --out ANOTHER_DIR"),
        _ => failure,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use unibus_proto::files::PublicCard;

    use super::*;
    use crate::args::IdentityKind;

    #[test]
    fn files_are_made_once_and_the_secret_is_private() {
        let dir = tempfile::tempdir().unwrap();
        let args =
            IdentityNewArgs { handle: "bob".parse().unwrap(), out: dir.path().into(), kind: IdentityKind::Service };
        let out = Output { json: true, out_tty: false, err_tty: false };
        new(&args, out).unwrap();
        let secret = dir.path().join("bob.identity");
        assert_eq!(secret.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        let identity = Identity::load(&secret).unwrap();
        assert_eq!(PublicCard::load(&dir.path().join("bob.pub")).unwrap(), identity.public_card());
        let failure = new(&args, out).unwrap_err();
        assert!(failure.message.contains("not overwritten"), "{}", failure.message);
        std::fs::remove_file(&secret).unwrap();
        assert!(new(&args, out).is_err(), "the card stands for other keys");
        assert!(!secret.exists());
    }
}
