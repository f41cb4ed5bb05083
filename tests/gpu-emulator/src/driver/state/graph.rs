//! Graphs: recorded work that is launched again and again.
//!
//! A graph is a list of nodes in an order in which they may run. An executable graph is a copy with
//! the parameter bytes of the moment; a launch copies it once more, so that changing the executable
//! never changes a launch that was enqueued before. Two launches of one executable never overlap.

use super::Driver;
use super::handles::{Handle, Kind};
use super::launch::LaunchRequest;
use super::queue::OperationId;
use super::work::{KernelWork, Trail, Work};
use crate::driver::failure::{Code, Outcome, ensure, failure};
use std::collections::BTreeSet;

/// One node.
#[derive(Debug, Clone)]
pub struct Node {
    /// What it does.
    pub work: Work,
    /// Earlier nodes it waits for, by index.
    pub waits_for: BTreeSet<usize>,
}

/// A graph that may be changed.
#[derive(Debug, Clone)]
pub struct Graph {
    /// Its nodes; each waits only for earlier ones.
    pub nodes: Vec<Node>,
    /// The handle of each node.
    pub names: Vec<Handle>,
}

/// Which node a node handle means.
#[derive(Debug, Clone, Copy)]
pub struct NodeName {
    /// Its graph.
    pub graph: Handle,
    /// Its index.
    pub index: usize,
}

/// A graph that can be launched.
#[derive(Debug)]
pub struct Executable {
    nodes: Vec<Node>,
    names: Vec<Handle>,
    /// The end of its last launch.
    last: Option<OperationId>,
    /// The flags it was made with.
    pub flags: u64,
}

/// Why an executable could not be updated, as `CUgraphExecUpdateResult` numbers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum UpdateResult {
    /// It was.
    Success = 0,
    /// Nodes or dependencies differ.
    TopologyChanged = 2,
    /// A node has become another kind of node.
    NodeTypeChanged = 3,
    /// A node's function belongs to another context.
    FunctionChanged = 4,
}

impl Driver {
    pub(super) fn new_graph(&mut self, graph: Graph) -> Handle {
        let count = graph.nodes.len();
        let handle = self.graphs.insert(graph);
        let names: Vec<_> =
            (0..count).map(|index| self.nodes.insert(NodeName { graph: handle, index })).collect();
        if let Ok(graph) = self.graphs.get_mut(handle) {
            graph.names = names;
        }
        handle
    }

    /// An empty graph.
    pub fn create_graph(&mut self) -> Handle {
        self.new_graph(Graph { nodes: Vec::new(), names: Vec::new() })
    }

    /// The graph.
    ///
    /// # Errors
    /// `InvalidHandle` when it is not live.
    pub fn graph(&self, graph: Handle) -> Outcome<&Graph> {
        self.graphs.get(graph)
    }

    /// Destroys a graph; executables made from it stay.
    ///
    /// # Errors
    /// `InvalidHandle` when it is not live.
    pub fn destroy_graph(&mut self, graph: Handle) -> Outcome {
        self.graphs.remove(graph)?;
        self.nodes.retain(|node| node.graph != graph);
        Ok(())
    }

    /// Appends a node that waits for others of its graph.
    ///
    /// # Errors
    /// `InvalidValue` when one of them is of another graph, `InvalidHandle`.
    pub fn add_node(&mut self, graph: Handle, waits_for: &[Handle], work: Work) -> Outcome<Handle> {
        let mut indices = BTreeSet::new();
        for name in waits_for {
            let node = *self.nodes.get(*name)?;
            ensure!(node.graph == graph, InvalidValue, "a dependency on a node of another graph");
            indices.insert(node.index);
        }
        let index = self.graphs.get(graph)?.nodes.len();
        let name = self.nodes.insert(NodeName { graph, index });
        let graph = self.graphs.get_mut(graph)?;
        graph.nodes.push(Node { work, waits_for: indices });
        graph.names.push(name);
        Ok(name)
    }

    /// A node by its handle.
    ///
    /// # Errors
    /// `InvalidHandle` when it is not live.
    pub fn node(&self, name: Handle) -> Outcome<&Node> {
        let NodeName { graph, index } = *self.nodes.get(name)?;
        Ok(&self.graphs.get(graph)?.nodes[index])
    }

    /// Handles of the nodes a node waits for.
    ///
    /// # Errors
    /// `InvalidHandle` when it is not live.
    pub fn node_waits(&self, name: Handle) -> Outcome<Vec<Handle>> {
        let NodeName { graph, index } = *self.nodes.get(name)?;
        let graph = self.graphs.get(graph)?;
        Ok(graph.nodes[index].waits_for.iter().map(|other| graph.names[*other]).collect())
    }

    /// The kernel of a kernel node.
    ///
    /// # Errors
    /// `InvalidValue` for another kind of node.
    pub fn kernel_node(&self, name: Handle) -> Outcome<&KernelWork> {
        match &self.node(name)?.work {
            Work::Kernel(kernel) => Ok(kernel),
            _ => Err(failure(Code::InvalidValue, "not a kernel node")),
        }
    }

    /// Checks a request against a node it would replace: the SMs stay those of the node.
    fn replacement(&self, old: &KernelWork, request: &LaunchRequest) -> Outcome<Work> {
        let stream = self.contexts.get(self.current_context()?)?.legacy_stream;
        let mut kernel = self.prepare(request, stream)?;
        kernel.launch.sms = old.launch.sms.clone();
        kernel.programmatic = old.programmatic;
        Ok(Work::Kernel(Box::new(kernel)))
    }

    /// Changes a kernel node of a graph.
    ///
    /// # Errors
    /// As for a launch; `InvalidValue` for another kind of node.
    pub fn set_kernel_node(&mut self, name: Handle, request: &LaunchRequest) -> Outcome {
        let work = self.replacement(self.kernel_node(name)?, request)?;
        let NodeName { graph, index } = *self.nodes.get(name)?;
        self.graphs.get_mut(graph)?.nodes[index].work = work;
        Ok(())
    }

    /// Makes an executable graph.
    ///
    /// # Errors
    /// `InvalidHandle` when the graph is not live.
    pub fn instantiate(&mut self, graph: Handle, flags: u64) -> Outcome<Handle> {
        let Graph { nodes, names } = self.graphs.get(graph)?.clone();
        let kernels = kernels_of(&nodes);
        let executable = self.executables.insert(Executable { nodes, names, last: None, flags });
        self.report.instantiated(Kind::Executable.number_of(executable), kernels);
        Ok(executable)
    }

    /// The number of an executable in the report.
    #[must_use]
    pub fn executable_number(&self, executable: Handle) -> u32 {
        Kind::Executable.number_of(executable)
    }

    /// The executable.
    ///
    /// # Errors
    /// `InvalidHandle` when it is not live.
    pub fn executable(&self, executable: Handle) -> Outcome<&Executable> {
        self.executables.get(executable)
    }

    /// Destroys an executable; launches that were enqueued still run.
    ///
    /// # Errors
    /// `InvalidHandle` when it is not live.
    pub fn destroy_executable(&mut self, executable: Handle) -> Outcome {
        self.executables.remove(executable).map(|_| ())
    }

    /// Enqueues every node in a resolved stream; answers the operation that ends the launch.
    ///
    /// # Errors
    /// `CaptureUnsupported` in a captured stream, `InvalidHandle`.
    pub fn launch_graph(&mut self, executable: Handle, stream: Handle) -> Outcome<OperationId> {
        let graph = self.executables.get(executable)?;
        let (nodes, last) = (graph.nodes.clone(), graph.last);
        if let Some(capture) = self.capture_of(stream)? {
            self.invalidate_capture(capture);
            let reason = "the emulator does not capture a graph launch";
            return Err(failure(Code::CaptureUnsupported, reason));
        }
        self.refuse_implicit_dependency(stream)?;
        let mut before = self.waits_of(stream)?;
        before.extend(last);
        let mut ids: Vec<OperationId> = Vec::with_capacity(nodes.len());
        let early: Vec<bool> =
            (0..nodes.len()).map(|index| may_begin_early(&nodes, index)).collect();
        let mut trails: Vec<Trail> = Vec::with_capacity(nodes.len());
        for (mut node, early) in nodes.into_iter().zip(early) {
            let own: Vec<_> = node.waits_for.iter().map(|index| ids[*index]).collect();
            let trail = Trail::default();
            if let Work::Kernel(kernel) = &mut node.work {
                let before = node.waits_for.first().filter(|_| early);
                kernel.behind = before.map(|index| Trail::clone(&trails[*index]));
                kernel.trail = Trail::clone(&trail);
            }
            trails.push(trail);
            let waits = if own.is_empty() { before.iter().copied().collect() } else { own };
            ids.push(self.push(stream, node.work, waits));
        }
        let end = self.push(stream, Work::Mark, ids.into_iter().chain(before));
        self.streams.get_mut(stream)?.tail = Some(end);
        self.executables.get_mut(executable)?.last = Some(end);
        Ok(end)
    }

    /// Changes one kernel node of an executable, named by the handle it has in its graph.
    ///
    /// # Errors
    /// As for a launch; `InvalidValue` when the executable has no such kernel node.
    pub fn set_executable_kernel(
        &mut self,
        executable: Handle,
        name: Handle,
        request: &LaunchRequest,
    ) -> Outcome {
        let graph = self.executables.get(executable)?;
        let index = graph.names.iter().position(|known| *known == name);
        let Some(index) = index else {
            return Err(failure(Code::InvalidValue, "the executable graph has no such node"));
        };
        let Work::Kernel(old) = &graph.nodes[index].work else {
            return Err(failure(Code::InvalidValue, "not a kernel node"));
        };
        let work = self.replacement(old, request)?;
        self.executables.get_mut(executable)?.nodes[index].work = work;
        Ok(())
    }

    /// Gives an executable the work of another graph of the same shape. Answers the result and the
    /// node that stood in the way.
    ///
    /// # Errors
    /// `InvalidHandle`; a difference of shape is a result, not an error.
    pub fn update_executable(
        &mut self,
        executable: Handle,
        graph: Handle,
    ) -> Outcome<(UpdateResult, Option<Handle>)> {
        let Graph { nodes, names } = self.graphs.get(graph)?.clone();
        let old = self.executables.get(executable)?;
        if old.nodes.len() != nodes.len() {
            return Ok((UpdateResult::TopologyChanged, None));
        }
        for ((was, is), name) in old.nodes.iter().zip(&nodes).zip(&names) {
            let reason = if was.waits_for != is.waits_for {
                UpdateResult::TopologyChanged
            } else if was.work.node_type() != is.work.node_type() {
                UpdateResult::NodeTypeChanged
            } else {
                match (&was.work, &is.work) {
                    (Work::Kernel(was), Work::Kernel(is))
                        if self.functions.get(is.function)?.root
                            != self.functions.get(was.function)?.root =>
                    {
                        UpdateResult::FunctionChanged
                    }
                    _ => continue,
                }
            };
            return Ok((reason, Some(*name)));
        }
        self.executables.get_mut(executable)?.nodes = nodes;
        Ok((UpdateResult::Success, None))
    }
}

/// Whether a node is a kernel with a programmatic edge: one that waits for one other kernel and may
/// begin before its end.
fn may_begin_early(nodes: &[Node], index: usize) -> bool {
    let Work::Kernel(kernel) = &nodes[index].work else { return false };
    let mut before = nodes[index].waits_for.iter().map(|before| &nodes[*before].work);
    kernel.programmatic && matches!((before.next(), before.next()), (Some(Work::Kernel(_)), None))
}

/// The kernels among nodes, in order, and whether each may begin early.
fn kernels_of(nodes: &[Node]) -> Vec<(String, bool)> {
    let kernels = nodes.iter().enumerate().filter_map(|(index, node)| match &node.work {
        Work::Kernel(kernel) => Some((kernel.name.to_string(), may_begin_early(nodes, index))),
        _ => None,
    });
    kernels.collect()
}
