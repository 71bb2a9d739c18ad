//! The platform over the fake: virtual time, a seeded random source, connections that can be refused.

use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::BoxFuture;
use tonic::body::Body;
use tonic::service::Routes;
use unibus_client::{BoxError, Platform};

use super::Cluster;
use super::service::routes;

#[derive(Clone)]
pub struct FakePlatform {
    cluster: Cluster,
    random: Arc<Mutex<u64>>,
}

impl FakePlatform {
    pub fn new(cluster: Cluster) -> Self {
        Self { cluster, random: Arc::new(Mutex::new(0x9e37_79b9_7f4a_7c15)) }
    }
}

impl Platform for FakePlatform {
    type Channel = FakeChannel;

    fn channel(&self, address: &str) -> FakeChannel {
        let node = address.strip_prefix('n').and_then(|rest| rest.split(':').next()?.parse().ok());
        let node = node.unwrap_or(99);
        FakeChannel { node, routes: routes(self.cluster.clone(), node), cluster: self.cluster.clone() }
    }

    fn spawn(&self, task: BoxFuture<'static, ()>) {
        tokio::spawn(task);
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(duration))
    }

    fn now(&self) -> Duration {
        self.cluster.started.elapsed()
    }

    fn wall_ms(&self) -> u64 {
        self.cluster.now_ms()
    }

    fn fill_random(&self, buffer: &mut [u8]) {
        let mut state = self.random.lock().unwrap();
        for byte in buffer {
            *state ^= *state << 13;
            *state ^= *state >> 7;
            *state ^= *state << 17;
            *byte = *state as u8;
        }
    }
}

#[derive(Clone)]
pub struct FakeChannel {
    node: u64,
    routes: Routes,
    cluster: Cluster,
}

impl tower::Service<http::Request<Body>> for FakeChannel {
    type Response = http::Response<Body>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let known = self.cluster.lock().nodes.get(&self.node).map(|node| (node.down, node.deaf));
        match known {
            Some((false, false)) => {
                let answer = self.routes.call(request);
                Box::pin(async move { Ok(answer.await?) })
            }
            Some((false, true)) => Box::pin(std::future::pending()),
            _ => Box::pin(async { Err(tonic::ConnectError("connection refused".into()).into()) }),
        }
    }
}
