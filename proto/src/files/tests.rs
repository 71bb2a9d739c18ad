use std::os::unix::fs::PermissionsExt;

use super::*;

fn identity() -> Identity {
    let mut next = 0;
    Identity::generate("alice".parse().unwrap(), DeviceKind::Person, 7, |bytes| {
        next += 1;
        bytes.fill(next);
    })
}

#[test]
fn identity_comes_back_and_is_never_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("alice.identity");
    identity().save(&path).unwrap();
    let back = Identity::load(&path).unwrap();
    assert_eq!(back.device_id(), identity().device_id());
    assert_eq!(back.bundle(ClusterId([7; 16])), identity().bundle(ClusterId([7; 16])));
    assert!(matches!(identity().save(&path), Err(FileError::Exists { .. })));
}

#[test]
fn readable_identity_is_refused_with_the_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("alice.identity");
    identity().save(&path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    let error = Identity::load(&path).unwrap_err().to_string();
    assert!(error.contains("chmod 600"), "{error}");
}

#[test]
fn damaged_identity_does_not_show_its_keys() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("alice.identity");
    identity().save(&path).unwrap();
    let text = fs::read_to_string(&path).unwrap();
    let secret = hex::encode([1; 32]);
    assert!(text.contains(&secret));
    fs::write(&path, text.replace(&secret, &format!("{secret}ff"))).unwrap();
    let error = format!("{:?}", Identity::load(&path).unwrap_err());
    assert!(error.contains("user_key") && !error.contains(&secret), "{error}");
    fs::write(&path, text.replace("\"created_ms\": 7", &format!("\"created_ms\": \"{secret}\""))).unwrap();
    let error = format!("{:?}", Identity::load(&path).unwrap_err());
    assert!(error.contains("line") && !error.contains(&secret), "{error}");
    assert!(!format!("{:?}", identity()).contains(&secret));
}

#[test]
fn card_and_profile_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("alice.pub");
    identity().public_card().save(&path).unwrap();
    assert_eq!(PublicCard::load(&path).unwrap(), identity().public_card());
    let path = profile_path(dir.path(), "dev");
    let profile = Profile::new("a".into(), "b".into(), vec!["127.0.0.1:1".into()]);
    profile.save(&path).unwrap();
    assert_eq!(Profile::load(&path).unwrap(), profile);
}
