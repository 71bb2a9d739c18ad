use std::fs;

use super::*;
use crate::testing::TestEnv;

const CLUSTER: ClusterId = ClusterId([7; 16]);

async fn made(dir: &Path) -> Identity {
    let env = TestEnv::new(1);
    let (identity, _lock) = Identity::open(&env, dir, CLUSTER, NodeId(1)).await.expect("blank directory");
    fs::create_dir_all(dir.join(WAL_DIR)).expect("wal");
    fs::write(dir.join(WAL_DIR).join("0.wal"), b"x").expect("wal file");
    Identity::finish_minting(&env, dir).await.expect("finishes");
    identity
}

async fn refused(dir: &Path, cluster: ClusterId, node: u64) -> String {
    match Identity::open(&TestEnv::new(2), dir, cluster, NodeId(node)).await {
        Ok(_) => panic!("the directory was accepted"),
        Err(e) => e.to_string(),
    }
}

#[tokio::test]
async fn comes_back_as_minted() {
    let dir = tempfile::tempdir().expect("tempdir");
    let minted = made(dir.path()).await;
    let (found, _lock) = Identity::open(&TestEnv::new(2), dir.path(), CLUSTER, NodeId(1)).await.expect("opens");
    assert_eq!(found, minted);
    assert!(!Identity::is_minting(&TestEnv::new(2), dir.path()).await.expect("reads"));
}

#[tokio::test]
async fn an_interrupted_minting_goes_on_with_the_same_ids() {
    let dir = tempfile::tempdir().expect("tempdir");
    let env = TestEnv::new(1);
    let (first, lock) = Identity::open(&env, dir.path(), CLUSTER, NodeId(1)).await.expect("blank");
    drop(lock);
    fs::create_dir_all(dir.path().join(WAL_DIR)).expect("wal");
    fs::write(dir.path().join(WAL_DIR).join("half"), b"x").expect("half a wal");
    let (second, _lock) = Identity::open(&env, dir.path(), CLUSTER, NodeId(1)).await.expect("goes on");
    assert_eq!(first, second);
    assert!(Identity::is_minting(&env, dir.path()).await.expect("reads"));
}

#[tokio::test]
async fn refuses_what_is_not_its_own() {
    let dir = tempfile::tempdir().expect("tempdir");
    made(dir.path()).await;
    let text = refused(dir.path(), ClusterId([8; 16]), 1).await;
    assert!(text.contains("belongs to cluster 0707") && text.contains("expected cluster 0808"), "{text}");
    let text = refused(dir.path(), CLUSTER, 2).await;
    assert!(text.contains("belongs to node 1, expected node 2"), "{text}");
}

#[tokio::test]
async fn refuses_a_directory_in_use() {
    let dir = tempfile::tempdir().expect("tempdir");
    let held = Identity::open(&TestEnv::new(1), dir.path(), CLUSTER, NodeId(1)).await.expect("blank");
    let text = refused(dir.path(), CLUSTER, 1).await;
    assert!(text.contains("in use by another process"), "{text}");
    drop(held);
}

#[tokio::test]
async fn refuses_half_a_directory() {
    let dir = tempfile::tempdir().expect("tempdir");
    made(dir.path()).await;
    fs::remove_dir_all(dir.path().join(WAL_DIR)).expect("wipe");
    let text = refused(dir.path(), CLUSTER, 1).await;
    assert!(text.contains("has an identity (node 1) but no write-ahead log"), "{text}");
    assert!(text.contains("unibusctl node replace"), "{text}");

    let dir = tempfile::tempdir().expect("tempdir");
    made(dir.path()).await;
    fs::remove_file(dir.path().join(IDENTITY)).expect("wipe");
    let text = refused(dir.path(), CLUSTER, 1).await;
    assert!(text.contains("has a write-ahead log but no identity"), "{text}");
}

#[tokio::test]
async fn refuses_a_newer_version() {
    let dir = tempfile::tempdir().expect("tempdir");
    made(dir.path()).await;
    let body = "unibus-directory 2\n";
    fs::write(dir.path().join(IDENTITY), body).expect("newer");
    let text = refused(dir.path(), CLUSTER, 1).await;
    assert!(text.contains("format version 2, expected at most 1"), "{text}");
}

#[tokio::test]
async fn every_cut_and_flip_is_noticed() {
    let dir = tempfile::tempdir().expect("tempdir");
    made(dir.path()).await;
    let file = dir.path().join(IDENTITY);
    let good = fs::read(&file).expect("reads");
    for cut in 0..good.len() {
        fs::write(&file, &good[..cut]).expect("cut");
        refused(dir.path(), CLUSTER, 1).await;
    }
    for bit in 0..good.len() * 8 {
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        fs::write(&file, &bad).expect("flip");
        refused(dir.path(), CLUSTER, 1).await;
    }
}

#[tokio::test]
async fn a_promise_comes_back() {
    let dir = tempfile::tempdir().expect("tempdir");
    let env = TestEnv::new(1);
    assert_eq!(Promise::load(&env, dir.path()).await.expect("reads"), None);
    let mut promise = Promise { plan_hash: [9; 32], initializer: DirectoryId([1; 16]), formed: None };
    promise.save(&env, dir.path()).await.expect("saves");
    assert_eq!(Promise::load(&env, dir.path()).await.expect("reads"), Some(promise.clone()));
    promise.formed = Some(BTreeMap::from([(NodeId(1), DirectoryId([1; 16])), (NodeId(2), DirectoryId([2; 16]))]));
    promise.save(&env, dir.path()).await.expect("saves");
    assert_eq!(Promise::load(&env, dir.path()).await.expect("reads"), Some(promise));
}
