//! The server's life: bind, load, serve, drain, end.
//!
//! Ports are bound before the models are loaded, so that a taken port costs no loading and
//! `/health` can say 503 meanwhile. Draining first refuses new requests, then waits for those in
//! progress, then closes the ports. Invariant: [`Server::drain`] returns within its limit, whatever
//! clients do, and what is still running then is cancelled.

use super::models::{self, Model};
use super::{Places, Port, Shared, metrics, router};
use crate::config;
use crate::engine::{Engine, Pair};
use crate::error::ServeError;
use std::net::{SocketAddr, TcpListener};
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
#[cfg(unix)]
use std::task::Poll;
use std::time::{Duration, Instant};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// How often a draining server looks whether it is done.
const DRAIN_POLL: Duration = Duration::from_millis(10);
/// How long connections may take to close once their replies are done.
const CLOSE_MAX: Duration = Duration::from_secs(2);
/// Threads that read and write sockets; the work is done elsewhere.
const SOCKET_THREADS: usize = 2;

/// A port, and the one model it answers as where it is pinned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listen {
    /// `HOST:PORT`, or `PORT` alone for the default host.
    pub address: String,
    /// The model: the pair's name, `NAME-base` or `NAME-draft`.
    pub model: Option<String>,
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (address, model) = match text.split_once('=') {
            None => (text, None),
            Some((_, "")) => return Err("expected a model after the equals sign".into()),
            Some((address, model)) => (address, Some(model.to_owned())),
        };
        let port = address.rsplit(':').next().unwrap_or_default();
        if port.parse::<u16>().is_err() {
            return Err(format!("expected PORT or HOST:PORT, got {address:?}"));
        }
        Ok(Self { address: address.to_owned(), model })
    }
}

/// How to serve.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// The host of ports that name none.
    pub host: String,
    /// The ports; at least one.
    pub listen: Vec<Listen>,
    /// Asked for by every route but `/health`.
    pub api_key: Option<String>,
    /// The pair's name; its own by default.
    pub served_model_name: Option<String>,
    /// Origins whose web pages may ask, such as `https://example.org`; `*` is every one.
    pub cors_origins: Vec<String>,
    /// Bytes a body may have.
    pub body_bytes_max: usize,
    /// Replies that may be worked on or wait at the same time.
    pub places: usize,
    /// How long replies in progress may take once the server drains.
    pub drain: Duration,
}

impl Default for ServerOptions {
    fn default() -> Self {
        let listen = Listen { address: config::SERVE_PORT.to_string(), model: None };
        Self {
            host: config::SERVE_HOST.into(),
            listen: vec![listen],
            api_key: None,
            cors_origins: vec![],
            served_model_name: None,
            body_bytes_max: config::BODY_BYTES_MAX,
            places: config::SEQUENCES_MAX + config::QUEUE_MAX,
            drain: Duration::from_secs(config::DRAIN_S),
        }
    }
}

/// A running server.
pub struct Server {
    runtime: Runtime,
    shared: Arc<Shared>,
    ports: Vec<(SocketAddr, Vec<String>)>,
    close: watch::Sender<bool>,
    serving: Vec<JoinHandle<()>>,
    drain: Duration,
}

impl Server {
    /// Binds every port and answers on it; everything but `/v1/models` is 503 until
    /// [`Server::ready`].
    ///
    /// # Errors
    /// When a port cannot be had, or is pinned to a model the pair does not have.
    pub fn bind(options: &ServerOptions, pair: &Pair) -> Result<Self, ServeError> {
        let name = options.served_model_name.as_deref().unwrap_or(&pair.name);
        let all = models::of_pair(name, pair);
        let origin = |text: &String| {
            text.parse().map_err(|_| ServeError::Invalid {
                field: "cors-origin",
                reason: format!("expected an origin or *, got {text:?}"),
            })
        };
        let cors_origins = options.cors_origins.iter().map(origin).collect::<Result<_, _>>()?;
        let mut bound = vec![];
        for listen in &options.listen {
            let models = pinned(&all, listen)?;
            bound.push((socket(listen, &options.host)?, models));
        }
        let runtime = Builder::new_multi_thread()
            .worker_threads(SOCKET_THREADS)
            .thread_name("forerun-http")
            .enable_all()
            .build()
            .map_err(ServeError::Runtime)?;
        let shared = Arc::new(Shared {
            engine: OnceLock::new(),
            draining: AtomicBool::new(false),
            places: Arc::new(Places { taken: AtomicUsize::new(0), limit: options.places }),
            metrics: metrics::Metrics::default(),
            api_key: options.api_key.clone(),
            body_bytes_max: options.body_bytes_max,
            cors_origins,
            created_s: super::chat::now_s(),
        });
        let (close, closing) = watch::channel(false);
        let (mut ports, mut serving) = (vec![], vec![]);
        for (listener, models) in bound {
            let address = listener.local_addr().map_err(ServeError::Runtime)?;
            ports.push((address, models.iter().map(|m| m.name.clone()).collect()));
            let app = router(Port { shared: shared.clone(), models: models.into() });
            let _context = runtime.enter();
            let listener = listener
                .set_nonblocking(true)
                .and_then(|()| tokio::net::TcpListener::from_std(listener));
            let listener = listener.map_err(ServeError::Runtime)?;
            let mut closing = closing.clone();
            let closed = async move {
                // The sender lives as long as the server does.
                let _ = closing.wait_for(|close| *close).await;
            };
            serving.push(runtime.spawn(async move {
                let served = axum::serve(listener, app).with_graceful_shutdown(closed).await;
                if let Err(error) = served {
                    tracing::warn!("{address}: {error}");
                }
            }));
        }
        Ok(Self { runtime, shared, ports, close, serving, drain: options.drain })
    }

    /// The addresses and the models each answers as.
    #[must_use]
    pub fn ports(&self) -> &[(SocketAddr, Vec<String>)] {
        &self.ports
    }

    /// Takes requests from now on.
    ///
    /// # Panics
    /// If called twice.
    pub fn ready(&self, engine: Engine) {
        assert!(self.shared.engine.set(engine).is_ok(), "one engine a server");
    }

    /// Listens for Ctrl-C and, where there is one, SIGTERM; call it before telling anybody that
    /// the server is there. The returned function waits for the next of them.
    ///
    /// # Errors
    /// When the system does not let a process listen for them.
    pub fn signals(&self) -> Result<impl FnMut() + Send + 'static, ServeError> {
        let _context = self.runtime.enter();
        let handle = self.runtime.handle().clone();
        let mut signals = Signals::listen().map_err(ServeError::Runtime)?;
        Ok(move || handle.block_on(signals.next()))
    }

    /// Refuses new requests, waits for those in progress and ends the server. `hurry` cuts the
    /// waiting short.
    pub fn drain(self, hurry: &AtomicBool) {
        self.shared.draining.store(true, Ordering::Relaxed);
        let began = Instant::now();
        while self.shared.places.taken() > 0
            && began.elapsed() < self.drain
            && !hurry.load(Ordering::Relaxed)
        {
            std::thread::sleep(DRAIN_POLL);
        }
        let cut = self.shared.places.taken();
        if cut > 0 {
            tracing::warn!("{cut} replies were cancelled: they were not done in time");
        }
        // Nobody listens any more once every port is closed.
        let _ = self.close.send(true);
        let serving = self.serving;
        self.runtime.block_on(async {
            let all = async {
                for port in serving {
                    // A port that panicked is closed too.
                    let _ = port.await;
                }
            };
            // Connections that will not close are dropped with the runtime.
            let _ = tokio::time::timeout(CLOSE_MAX, all).await;
        });
        self.runtime.shutdown_timeout(CLOSE_MAX);
    }
}

fn pinned(all: &[Model], listen: &Listen) -> Result<Vec<Model>, ServeError> {
    let Some(name) = &listen.model else { return Ok(all.to_vec()) };
    match all.iter().find(|model| &model.name == name) {
        Some(model) => Ok(vec![model.clone()]),
        None => {
            let names: Vec<_> = all.iter().map(|model| model.name.as_str()).collect();
            let reason = format!("there is no model {name:?}; there are {}", names.join(", "));
            Err(ServeError::Invalid { field: "listen", reason })
        }
    }
}

fn socket(listen: &Listen, host: &str) -> Result<TcpListener, ServeError> {
    let address = &listen.address;
    let full = match (address.contains(':'), host.contains(':')) {
        (true, _) => address.clone(),
        (false, true) => format!("[{host}]:{address}"),
        (false, false) => format!("{host}:{address}"),
    };
    TcpListener::bind(&full).map_err(|source| ServeError::Bind { address: full, source })
}

#[cfg(unix)]
struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Signals {
    fn listen() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        let interrupt = signal(SignalKind::interrupt())?;
        Ok(Self { interrupt, terminate: signal(SignalKind::terminate())? })
    }

    async fn next(&mut self) {
        std::future::poll_fn(|context| {
            let seen = self.interrupt.poll_recv(context).is_ready()
                || self.terminate.poll_recv(context).is_ready();
            if seen { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }
}

#[cfg(not(unix))]
struct Signals;

#[cfg(not(unix))]
impl Signals {
    fn listen() -> std::io::Result<Self> {
        Ok(Self)
    }

    async fn next(&mut self) {
        // Without a console there is nobody to end the server this way.
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_a_number_or_an_address_and_may_be_pinned() {
        let parse = |text: &str| text.parse::<Listen>();
        let listen = |address: &str, model: Option<&str>| {
            Ok(Listen { address: address.into(), model: model.map(str::to_owned) })
        };
        assert_eq!(parse("30000=tiny-base"), listen("30000", Some("tiny-base")));
        assert_eq!(parse("0.0.0.0:8000"), listen("0.0.0.0:8000", None));
        assert_eq!(parse("[::1]:80=a"), listen("[::1]:80", Some("a")));
        for bad in ["", "host", "host:", "99999", "80=", "=tiny"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_port_that_is_taken_or_pinned_to_nothing_is_refused() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let listen = |address: String, model: Option<&str>| ServerOptions {
            listen: vec![Listen { address, model: model.map(str::to_owned) }],
            ..ServerOptions::default()
        };
        let pair = Pair::tiny();
        let port = taken.local_addr().unwrap().port().to_string();
        let error = Server::bind(&listen(port.clone(), None), &pair).err().unwrap();
        assert!(error.to_string().starts_with(&format!("127.0.0.1:{port}: ")), "{error}");
        let error = Server::bind(&listen("0".into(), Some("tinny")), &pair).err().unwrap();
        assert!(error.to_string().contains("there are tiny, tiny-base, tiny-draft"), "{error}");
    }
}
