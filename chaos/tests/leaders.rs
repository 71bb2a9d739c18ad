//! Leaderships are spread, and clients go to the leaders.

use unibus_chaos::scenario::spread_leaders;

#[test]
fn leaders_are_spread_clients_go_to_them_and_a_node_that_comes_back_gets_its_own() {
    for seed in [3, 4] {
        let report = spread_leaders(seed, None);
        assert!(report.violations.is_empty(), "seed {seed}: {:?}", report.violations);
        assert!(report.acked > 72, "seed {seed}: {} acknowledged", report.acked);
    }
}
