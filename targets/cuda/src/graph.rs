//! A recorded step: many launches that the GPU repeats at one word, without what it costs the CPU to ask for each.

use crate::device::{give_back_freed_memory, give_back_memory_of_graphs};
use candle_core::cuda::cudarc::driver::CudaGraph;
use candle_core::cuda::cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use candle_core::cuda::{CudaDevice, WrapErr};
use candle_core::{Device, Error, Result, bail};
use std::thread::ThreadId;

/// The launches of a closure, as a CUDA graph.
///
/// A graph knows addresses, not tensors. So the closure
/// - reads and writes what was made before it: inputs are changed in place between launches and results are written in place
///   by its end, both with [`candle_core::Tensor::slice_set`];
/// - drops every tensor that it makes, and none that was made before it. What it makes lives in memory of the graph, at one
///   address in every launch;
/// - copies nothing from or to the host, draws no random numbers and takes no decision from a tensor's values;
/// - does the same every time: the shapes are those of the recording.
///
/// Meanwhile no other thread may use the same device: what it asked for would be recorded, too, and not done.
///
/// Every tensor that it reads or writes must live as long as the graph: weights, inputs, results. Only the thread that
/// recorded it can launch it: candle keeps the shapes and strides that kernels read in a cache of the thread.
pub struct Graph {
    graph: CudaGraph,
    device: CudaDevice,
    recorded_on: ThreadId,
}

// SAFETY: the driver takes handles of graphs from any thread, one at a time, and a `Graph` is not `Sync`. What a launch reads
// of the recording thread's cache is only read from that thread, which `launch` sees to.
unsafe impl Send for Graph {}

impl std::fmt::Debug for Graph {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Graph").field("device", &self.device).finish_non_exhaustive()
    }
}

impl Graph {
    /// Runs `work` twice: once really, which loads its kernels and uploads shapes and strides, and once recorded, which
    /// computes nothing. After it the results are those of the real run.
    ///
    /// # Errors
    /// `work` fails, or does what a recording does not allow (see [`Graph`]); the device is not from [`crate::open`] or has
    /// no memory pools. The device can be used further.
    pub fn capture(device: &Device, mut work: impl FnMut() -> Result<()>) -> Result<Graph> {
        let Device::Cuda(device) = device else { bail!("only a CUDA device records a graph") };
        if device.is_event_tracking() {
            bail!("a graph needs a device without event tracking, as pleinair_cuda::open() gives it")
        }
        let stream = device.cuda_stream();
        if !stream.context().has_async_alloc() {
            bail!("this GPU has no memory pools, so that nothing can be recorded on it")
        }
        let _cache = device.enable_cuda_graph_htod_cache();
        work()?;
        stream.context().check_err().w()?;
        // what the real run took would lie idle beside the graph's own
        give_back_freed_memory(device)?;
        // other threads may go on using the GPU meanwhile, on streams of their own
        stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).w()?;
        let recording = Recording(device);
        let worked = work();
        let graph = recording.end();
        worked?;
        match graph {
            Ok(Some(graph)) => Ok(Graph { graph, device: device.clone(), recorded_on: std::thread::current().id() }),
            Ok(None) => bail!("nothing was recorded"),
            Err(e) => {
                Err(e.context("the step cannot be recorded: it freed a tensor from before, or read one's values"))
            }
        }
    }

    /// Repeats the recorded launches on the device's stream; they have not ended when this returns.
    ///
    /// # Errors
    /// It is another thread than the recording one; or the driver refuses, as it does if a tensor made in the recording was
    /// kept.
    pub fn launch(&self) -> Result<()> {
        if !self.is_of_this_thread() {
            bail!("another thread recorded this step")
        }
        let launched = self.graph.launch().w();
        launched.map_err(|e: Error| e.context("the recorded step does not start: was a tensor made in it kept?"))
    }

    /// Whether this thread recorded it.
    pub fn is_of_this_thread(&self) -> bool {
        self.recorded_on == std::thread::current().id()
    }

    /// The device on which it was recorded.
    pub fn device(&self) -> Device {
        Device::Cuda(self.device.clone())
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // memory that stays where no tensor finds it is all that a failure costs
        let _ = give_back_memory_of_graphs(&self.device);
    }
}

/// A stream while it is captured: it leaves that state even if the closure panics.
struct Recording<'a>(&'a CudaDevice);

impl Recording<'_> {
    fn end(self) -> Result<Option<CudaGraph>> {
        let graph = self.stop();
        std::mem::forget(self);
        graph
    }

    fn stop(&self) -> Result<Option<CudaGraph>> {
        let stream = self.0.cuda_stream();
        // A tensor from before, dropped in the recording, has left its error in the context; there it would keep the
        // next call from the driver.
        let dropped = stream.context().check_err().w();
        let graph = stream.end_capture(CUgraphInstantiate_flags(0)).w();
        dropped?;
        graph
    }
}

impl Drop for Recording<'_> {
    fn drop(&mut self) {
        // the panic that leads here says what is wrong
        let _ = self.stop();
    }
}
