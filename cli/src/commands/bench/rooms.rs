//! `bench rooms`.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ring::rand::{SecureRandom, SystemRandom};
use tokio::task::JoinSet;
use unibus_client::Client;
use unibus_proto::files::Identity;
use unibus_proto::subject::Subject;
use unibus_proto::v1::{DeviceKind, UserRole};

use super::measure::Measured;
use super::report::Report;
use super::stored_plaintext;
use crate::args::{BenchRoomsArgs, Global};
use crate::exit::{Failure, Result};
use crate::output::{Output, thousands};
use crate::session::{During, Session, interrupted};
use crate::time::{human, now_ms};

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
    describe(args, &name, &rooms, &users).print(&args.earlier, out)
}

fn describe(args: &BenchRoomsArgs, name: &str, rooms: &Measured, users: &Measured) -> Report {
    let mut headline = format!("{}, {} requests on the way", words("rooms", rooms), args.parallel);
    if args.users > 0 {
        let of = |quantile| human(Duration::from_micros(users.latency.value_at_quantile(quantile)));
        headline = format!("{}, p50 {}, p99 {}\n{headline}", words("users", users), of(0.5), of(0.99));
    }
    let report = Report::new("bench_rooms", headline)
        .set("subjects", format!("{name}.>"))
        .set("parallel", args.parallel)
        .set("rooms", args.rooms)
        .set("users", args.users)
        .set("rooms_per_second", rooms.per_second() as u64)
        .set("duration_ms", rooms.took().as_millis() as u64)
        .latency(rooms)
        .note(format!("rooms {name}.0 to {name}.{}", args.rooms - 1));
    if args.users == 0 {
        return report;
    }
    report
        .set("users_per_second", users.per_second() as u64)
        .set("users_duration_ms", users.took().as_millis() as u64)
        .set("users_latency_us", users.latency_json())
}

fn words(what: &str, measured: &Measured) -> String {
    let (per_second, count) = (thousands(measured.per_second() as u64), thousands(measured.latency.len()));
    format!("{per_second} {what}/s: {count} in {}", human(measured.took()))
}

async fn create_room(client: Arc<Client>, subject: String) -> Result<()> {
    let subject: Subject = subject.parse().expect("words and hexadecimal digits are a subject");
    client.create_room(&subject, stored_plaintext()).await.during(format!("bench, create room {subject}")).map(drop)
}

async fn add_user(client: Arc<Client>, handle: String) -> Result<()> {
    let random = SystemRandom::new();
    let fill = |bytes: &mut [u8]| random.fill(bytes).expect("the operating system has randomness");
    let name = handle.parse().expect("words, digits and hyphens are a handle");
    let card = Identity::generate(name, DeviceKind::Service, now_ms(), fill).public_card();
    client.add_user(&card, UserRole::Member).await.during(format!("bench, add user {handle}")).map(drop)
}

/// Makes `count` requests, `parallel` of them at a time.
async fn many<F: Future<Output = Result<()>> + Send + 'static>(
    count: u64,
    parallel: u32,
    request: impl Fn(u64) -> F + Clone + Send + Sync + 'static,
) -> Result<Measured> {
    let began = Instant::now();
    let next = Arc::new(AtomicU64::new(0));
    let mut tasks: JoinSet<Result<Measured>> = JoinSet::new();
    for _ in 0..parallel.min(u32::try_from(count).unwrap_or(u32::MAX)) {
        let (next, request) = (next.clone(), request.clone());
        tasks.spawn(async move {
            let mut measured = Measured::new()?;
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count {
                    return Ok(measured);
                }
                let asked = Instant::now();
                request(number).await?;
                measured.record(asked, Instant::now(), began);
            }
        });
    }
    let mut total = Measured::new()?;
    let stop = interrupted();
    tokio::pin!(stop);
    loop {
        let done = tokio::select! {
            done = tasks.join_next() => done,
            () = &mut stop => return Err(Failure::interrupted()),
        };
        let Some(done) = done else { return Ok(total) };
        total.add(done.map_err(|error| Failure::local(format!("bench: {error}")))??);
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
        assert_eq!((measured.latency.len(), measured.warmup), (25, 0));
        assert!(words("rooms", &measured).contains(" rooms/s: 25 in "));
        assert_eq!(many(0, 4, |_| async { Ok(()) }).await.unwrap().per_second() as u64, 0);
    }
}
