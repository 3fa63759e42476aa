//! Connections: how many there may be, how long they may take, and how they end.

use std::{
    collections::VecDeque,
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use axum::{Router, body::Body, extract::Request, response::Response};
use hyper::{
    body::{Body as HttpBody, Frame, Incoming, SizeHint},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Notify, OwnedSemaphorePermit, Semaphore, watch},
    task::JoinSet,
};
use tower_service::Service;

use super::stalled::Unstalled;

/// Bounds of the server's connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connections {
    /// Open at a time. When there are so many, the oldest one that has asked for nothing is closed for a new one.
    pub most: usize,
    /// A request's head is there within this time, and a connection without a request is closed after it.
    pub head: Duration,
    /// A client that takes nothing of its answer for so long is let go.
    pub stall: Duration,
    /// So long running answers may take after the server is asked to stop.
    pub finish: Duration,
}

impl Default for Connections {
    fn default() -> Self {
        Self {
            most: 512,
            head: Duration::from_secs(10),
            stall: Duration::from_secs(60),
            finish: Duration::from_secs(30),
        }
    }
}

/// A connection as others see it.
struct Open {
    /// Requests that are being answered.
    running: AtomicUsize,
    /// Asks it to end.
    end: Notify,
}

/// Connections from the oldest on.
type Register = Arc<Mutex<VecDeque<Arc<Open>>>>;

/// Answers with `router` until `stop` is ready and says so to `stopping`; then running answers are finished within
/// [`Connections::finish`] and what is open beyond that is closed.
pub(super) async fn listen(
    listener: TcpListener,
    router: Router,
    bounds: Connections,
    stopping: watch::Sender<bool>,
    stop: impl Future<Output = ()> + Send + 'static,
) {
    let permits = Arc::new(Semaphore::new(bounds.most.max(1)));
    let register = Register::default();
    let stopped = stopping.subscribe();
    let mut connections = JoinSet::new();
    let mut stop = std::pin::pin!(stop);
    loop {
        let accepted = tokio::select! {
            accepted = accept(&listener, &permits, &register) => accepted,
            () = &mut stop => break,
        };
        let Some((stream, permit)) = accepted else { continue };
        // Those that have ended are forgotten.
        while connections.try_join_next().is_some() {}
        let open = Arc::new(Open { running: AtomicUsize::new(0), end: Notify::new() });
        lock(&register).push_back(open.clone());
        let connection = connection(stream, router.clone(), bounds, open.clone(), stopped.clone());
        let register = register.clone();
        connections.spawn(async move {
            connection.await;
            lock(&register).retain(|other| !Arc::ptr_eq(other, &open));
            drop(permit);
        });
    }
    drop(listener);
    // Nobody may be listening: all connections have ended then.
    let _ = stopping.send(true);
    let all = async { while connections.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(bounds.finish, all).await;
    connections.shutdown().await;
}

/// The next connection, when there is room for one.
async fn accept(
    listener: &TcpListener,
    permits: &Arc<Semaphore>,
    register: &Register,
) -> Option<(TcpStream, OwnedSemaphorePermit)> {
    let Ok((stream, _)) = listener.accept().await else {
        // Out of file descriptors, most likely: some may be closed by then.
        close_idle(register);
        tokio::time::sleep(Duration::from_millis(50)).await;
        return None;
    };
    let permit = match permits.clone().try_acquire_owned() {
        Ok(permit) => permit,
        Err(_) => {
            close_idle(register);
            permits.clone().acquire_owned().await.ok()?
        }
    };
    // Small pieces of an answer are not to wait for each other.
    let _ = stream.set_nodelay(true);
    Some((stream, permit))
}

/// Ends the oldest connection that has no request running.
fn close_idle(register: &Register) {
    let mut register = lock(register);
    if let Some(at) = register.iter().position(|open| open.running.load(Relaxed) == 0)
        && let Some(open) = register.remove(at)
    {
        open.end.notify_one();
    }
}

async fn connection(
    stream: TcpStream,
    router: Router,
    bounds: Connections,
    open: Arc<Open>,
    mut stopped: watch::Receiver<bool>,
) {
    let running = open.clone();
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let guard = Running::of(running.clone());
        let answer = router.clone().call(Request::from(request.map(Body::new)));
        async move {
            let response: Result<Response, _> = answer.await;
            response.map(|response| response.map(|body| guard.until_the_end_of(body)))
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(bounds.head)
        .serve_connection(TokioIo::new(Unstalled::new(stream, bounds.stall)), service);
    let mut connection = std::pin::pin!(connection);
    // What a client does wrong on its connection ends it; there is nobody to tell.
    tokio::select! {
        _ = &mut connection => return,
        () = open.end.notified() => return,
        _ = stopped.wait_for(|stopped| *stopped) => {}
    }
    // Half a request is not waited for.
    if open.running.load(Relaxed) == 0 {
        return;
    }
    connection.as_mut().graceful_shutdown();
    let _ = connection.await;
}

/// A request that is being answered.
struct Running(Arc<Open>);

impl Running {
    fn of(open: Arc<Open>) -> Self {
        open.running.fetch_add(1, Relaxed);
        Self(open)
    }

    /// The body, with which the request runs until it is sent or dropped.
    fn until_the_end_of(self, body: Body) -> Answering {
        Answering { body, _running: self }
    }
}

/// The body of an answer.
struct Answering {
    body: Body,
    _running: Running,
}

impl HttpBody for Answering {
    type Data = <Body as HttpBody>::Data;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Relaxed);
    }
}

fn lock(register: &Register) -> std::sync::MutexGuard<'_, VecDeque<Arc<Open>>> {
    register.lock().unwrap_or_else(PoisonError::into_inner)
}
