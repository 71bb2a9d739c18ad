//! Verifies the sealed segments of all groups, one after another and slowly, for ever.

use std::time::Duration;

use crate::env::{Env, WatchReceiver, sleep};
use crate::group::Group;
use crate::watched::WatchReceiverOf;

/// Between two rounds, and before the first: a start has other things to do.
const PAUSE: Duration = Duration::from_secs(60);

/// Reads at `bytes_per_second`, 0 = not at all.
pub(super) async fn run<E: Env>(groups: Vec<Group<E>>, bytes_per_second: u64, mut stop: WatchReceiverOf<E, bool>) {
    if bytes_per_second == 0 {
        return;
    }
    tokio::select! {
        biased;
        _ = stop.changed() => {}
        () = rounds(&groups, bytes_per_second) => {}
    }
}

async fn rounds<E: Env>(groups: &[Group<E>], bytes_per_second: u64) {
    let pause = |bytes: u64| sleep::<E>(Duration::from_secs_f64(bytes as f64 / bytes_per_second as f64));
    loop {
        sleep::<E>(PAUSE).await;
        for group in groups {
            let segments = &group.0.replica.segments;
            for id in segments.scrubbable() {
                segments.scrub(id, pause).await;
            }
        }
    }
}
