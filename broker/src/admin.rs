//! The admin port: `/livez`, `/readyz`, `/metrics` over HTTP on loopback.
//!
//! Liveness never asks anybody: it answers from the first second, while the node still waits for the
//! others. Readiness says why not.
#![allow(clippy::disallowed_methods)] // Production only: sockets.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;

use crate::metrics::{self, Sample};

/// What the admin port tells about a node.
pub trait Probe: Send + Sync + 'static {
    /// Why the node is not ready; empty when it is.
    fn not_ready(&self) -> Vec<String>;
    /// What `/metrics` shows.
    fn sample(&self) -> Sample;
}

/// Filled in once the node is there.
#[derive(Clone, Default)]
pub struct Probed(Arc<OnceLock<Box<dyn Probe>>>);

impl Probed {
    /// The node has been started.
    pub fn set(&self, probe: impl Probe) {
        drop(self.0.set(Box::new(probe)));
    }

    fn not_ready(&self) -> Vec<String> {
        self.0.get().map_or_else(|| vec!["starting: reading the data directory".into()], |probe| probe.not_ready())
    }
}

/// Opens the admin port.
pub async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(address).await
}

/// Serves it until `stop` resolves.
pub async fn serve(
    listener: TcpListener,
    probed: Probed,
    stop: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let router = Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(show_metrics))
        .with_state(probed);
    axum::serve(listener, router).with_graceful_shutdown(stop).await
}

async fn readyz(State(probed): State<Probed>, headers: HeaderMap) -> Response {
    let reasons = probed.not_ready();
    let status = if reasons.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let accepts = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if accepts.contains("application/json") {
        let body = serde_json::json!({
            "schema": "unibus.node.v1.ready", "ready": reasons.is_empty(), "not_ready": reasons,
        });
        return (status, [(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response();
    }
    let lines = if reasons.is_empty() { "ready".into() } else { reasons.join("\n") };
    (status, format!("{lines}\n")).into_response()
}

async fn show_metrics(State(probed): State<Probed>) -> Response {
    let sample = probed.0.get().map(|probe| probe.sample()).unwrap_or_default();
    match metrics::render(&sample) {
        Ok(text) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], text).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("render metrics: {error}\n")).into_response(),
    }
}
