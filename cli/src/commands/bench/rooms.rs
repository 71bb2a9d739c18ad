//! `bench rooms`.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use ring::rand::{SecureRandom, SystemRandom};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use unibus_client::Client;
use unibus_proto::files::Identity;
use unibus_proto::subject::Subject;
use unibus_proto::v1::{DeviceKind, RoomPolicy, UserRole};

use crate::args::{BenchRoomsArgs, Global};
use crate::exit::{Failure, Result};
use crate::output::{Output, thousands};
use crate::session::{During, Session, interrupted};
use crate::time::{human, now_ms};

/// Longer latencies are counted as this; a request is given up long before.
const LATENCY_US_MAX: u64 = 3_600_000_000;
/// Three digits: finer than the noise of any machine.
const DIGITS: u8 = 3;

/// Runs `bench rooms`.
pub async fn run(args: &BenchRoomsArgs, global: &Global, out: Output) -> Result<()> {
    let client = Arc::new(Session::open(global, out)?.client);
    let name = format!("bench.{:x}", now_ms());
    let users = {
        let (client, name) = (client.clone(), name.replace('.', "-"));
        many(args.users, args.parallel, move |number| add_user(client.clone(), format!("{name}-{number}"))).await?
    };
    let rooms = {
        let name = name.clone();
        many(args.rooms, args.parallel, move |number| create_room(client.clone(), format!("{name}.{number}"))).await?
    };
    if out.json {
        return out.object(
            "bench_rooms",
            json!({
                "version": env!("CARGO_PKG_VERSION"),
                "subjects": format!("{name}.>"),
                "parallel": args.parallel,
                "rooms": rooms.describe(),
                "users": users.describe(),
            }),
        );
    }
    if args.users > 0 {
        out.line(&users.words("users"))?;
    }
    out.line(&rooms.words("rooms"))?;
    out.hint(format!("rooms {name}.0 to {name}.{}, {} requests on the way", args.rooms - 1, args.parallel));
    Ok(())
}

async fn create_room(client: Arc<Client>, subject: String) -> Result<()> {
    let subject: Subject = subject.parse().expect("words and hexadecimal digits are a subject");
    let policy = RoomPolicy { persist: true, ..RoomPolicy::default() };
    client.create_room(&subject, policy).await.during(format!("bench, create room {subject}")).map(drop)
}

async fn add_user(client: Arc<Client>, handle: String) -> Result<()> {
    let random = SystemRandom::new();
    let fill = |bytes: &mut [u8]| random.fill(bytes).expect("the operating system has randomness");
    let name = handle.parse().expect("words, digits and hyphens are a handle");
    let card = Identity::generate(name, DeviceKind::Service, now_ms(), fill).public_card();
    client.add_user(&card, UserRole::Member).await.during(format!("bench, add user {handle}")).map(drop)
}

/// How long requests of one kind took.
struct Measured {
    latency: Histogram<u64>,
    took: Duration,
}

/// Makes `count` requests, `parallel` of them at a time.
async fn many<F: Future<Output = Result<()>> + Send + 'static>(
    count: u64,
    parallel: u32,
    request: impl Fn(u64) -> F + Clone + Send + Sync + 'static,
) -> Result<Measured> {
    let began = Instant::now();
    let next = Arc::new(AtomicU64::new(0));
    let mut tasks: JoinSet<Result<Histogram<u64>>> = JoinSet::new();
    for _ in 0..parallel.min(u32::try_from(count).unwrap_or(u32::MAX)) {
        let (next, request) = (next.clone(), request.clone());
        tasks.spawn(async move {
            let mut latency = histogram()?;
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count {
                    return Ok(latency);
                }
                let began = Instant::now();
                request(number).await?;
                latency.saturating_record(began.elapsed().as_micros() as u64);
            }
        });
    }
    let mut latency = histogram()?;
    let stop = interrupted();
    tokio::pin!(stop);
    loop {
        let done = tokio::select! {
            done = tasks.join_next() => done,
            () = &mut stop => return Err(Failure::interrupted()),
        };
        let Some(done) = done else { return Ok(Measured { latency, took: began.elapsed() }) };
        let of_task = done.map_err(|error| Failure::local(format!("bench: {error}")))??;
        latency.add(of_task).map_err(|error| Failure::local(format!("bench, add up latencies: {error}")))?;
    }
}

fn histogram() -> Result<Histogram<u64>> {
    Histogram::new_with_bounds(1, LATENCY_US_MAX, DIGITS)
        .map_err(|error| Failure::local(format!("bench, histogram: {error}")))
}

impl Measured {
    fn per_second(&self) -> f64 {
        self.latency.len() as f64 / self.took.as_secs_f64().max(1e-6)
    }

    fn words(&self, what: &str) -> String {
        let at = |quantile| human(Duration::from_micros(self.latency.value_at_quantile(quantile)));
        format!(
            "{} {what}/s: {} in {}, p50 {}, p99 {}, max {}",
            thousands(self.per_second() as u64),
            thousands(self.latency.len()),
            human(self.took),
            at(0.5),
            at(0.99),
            human(Duration::from_micros(self.latency.max())),
        )
    }

    fn describe(&self) -> Value {
        json!({
            "count": self.latency.len(),
            "per_second": self.per_second() as u64,
            "duration_ms": self.took.as_millis() as u64,
            "latency_us": {
                "p50": self.latency.value_at_quantile(0.5),
                "p90": self.latency.value_at_quantile(0.9),
                "p99": self.latency.value_at_quantile(0.99),
                "max": self.latency.max(),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn each_number_is_requested_once_and_counted() {
        let asked = Arc::new(std::sync::Mutex::new(Vec::new()));
        let seen = asked.clone();
        let measured = many(25, 4, move |number| {
            let seen = seen.clone();
            async move {
                seen.lock().unwrap().push(number);
                Ok(())
            }
        });
        let measured = measured.await.unwrap();
        let mut asked = asked.lock().unwrap().clone();
        asked.sort_unstable();
        assert_eq!(asked, (0..25).collect::<Vec<_>>());
        assert_eq!(measured.describe()["count"], 25);
        assert!(measured.words("rooms").contains("rooms/s: 25 in "));
        assert_eq!(many(0, 4, |_| async { Ok(()) }).await.unwrap().describe()["per_second"], 0);
    }
}
