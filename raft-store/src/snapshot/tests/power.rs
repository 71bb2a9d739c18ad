use super::*;

/// P1: power fails at each operation of saving two snapshots: the start has one of them or none, and goes on.
#[tokio::test]
async fn a_power_cut_while_saving_leaves_a_whole_snapshot() {
    let dir = PathBuf::from("/group");
    let operations = {
        let env = CrashEnv::new(1);
        let base = open_in(&env, &dir, None).await.expect("blank");
        let begun = env.disk().operations();
        snapshot(&base, 0).await;
        snapshot(&base, 1).await;
        snapshot(&base, 2).await;
        env.disk().operations() - begun
    };
    assert!(operations > 20, "{operations}");
    for cut in 0..operations {
        let env = CrashEnv::new(cut);
        let base = open_in(&env, &dir, None).await.expect("blank");
        env.disk().fail_after(cut);
        let mut saved = None;
        for index in 0..3 {
            match try_snapshot(&base, index).await {
                Ok(_) => saved = Some(index),
                Err(_) => break,
            }
        }
        drop(base);
        env.disk().crash();
        let base = open_in(&env, &dir, saved.and_then(|saved| saved.checked_sub(1))).await.expect("opens");
        let found = index_of(&base);
        assert!(found >= saved, "cut {cut}: saved {saved:?}, found {found:?}");
        let next = found.map_or(0, |found| found + 1);
        assert_eq!(count(&base).await, next as usize * 10, "cut {cut}");
        if let Some((found, (_, pages))) = found.zip(base.rows) {
            assert_eq!(pages.collect().await.expect("reads"), rows(found), "cut {cut}");
        }
        let base = open_in(&env, &dir, None).await.expect("opens again");
        snapshot(&base, next).await;
    }
}

/// P1: power fails at each operation of receiving and installing: the start has the old or the new, whole, and
/// going on with the transfer ends well.
#[tokio::test]
async fn a_power_cut_while_installing_leaves_the_old_or_the_new() {
    let from = PathBuf::from("/leader");
    let to = PathBuf::from("/follower");
    let run = async |env: &CrashEnv, cut: Option<u64>| -> (u64, bool) {
        let leader = open_in(env, &from, None).await.expect("blank");
        for index in 0..4 {
            snapshot(&leader, index).await;
        }
        let data = leader.snapshots.current().expect("a snapshot");
        let follower = open_in(env, &to, None).await.expect("blank");
        snapshot(&follower, 0).await;
        let begun = env.disk().operations();
        if let Some(cut) = cut {
            env.disk().fail_after(cut);
        }
        let installed = follower.snapshots.install(&data).await.is_ok();
        (env.disk().operations() - begun, installed)
    };
    let (operations, installed) = run(&CrashEnv::new(1), None).await;
    assert!(installed && operations > 15, "{operations}");
    let mut finished = 0;
    for cut in 0..operations {
        let env = CrashEnv::new(cut);
        run(&env, Some(cut)).await;
        env.disk().crash();
        let follower = open_in(&env, &to, None).await.expect("opens");
        let found = index_of(&follower);
        assert!(found == Some(0) || found == Some(3), "cut {cut}: {found:?}");
        finished += u64::from(found == Some(3));
        assert_eq!(count(&follower).await, found.expect("one") as usize * 10 + 10, "cut {cut}");
        let leader = open_in(&env, &from, None).await.expect("whole");
        let data = leader.snapshots.current().expect("a snapshot");
        let (again, pages) = follower.snapshots.install(&data).await.expect("installs");
        follower.segments.reload(&again.manifest.segments, &BTreeSet::new()).await.expect("whole");
        assert_eq!(count(&follower).await, 40, "cut {cut}");
        assert_eq!(pages.collect().await.expect("reads"), rows(3), "cut {cut}");
        let left: Vec<_> = env.disk().names().into_iter().filter(|name| name.starts_with("/follower")).collect();
        assert!(!left.iter().any(|name| name.to_string_lossy().contains("staging")), "cut {cut}: {left:?}");
    }
    assert!(finished > 0, "some cuts lie behind the decision");
}
