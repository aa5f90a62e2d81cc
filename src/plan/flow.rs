//! Minimum-cost flow: successive shortest paths, all paths of one length at once.
//!
//! Costs are small whole numbers and may be negative; the network must have no circle of negative cost to begin with.

use std::collections::VecDeque;

/// An edge and how much more it can carry. Its reverse is its neighbour in the list: edge `e` and edge `e ^ 1`.
struct Edge {
    to: usize,
    room: u64,
    cost: i64,
}

/// A network; its flow starts at zero.
pub(super) struct Network {
    edges: Vec<Edge>,
    /// Edges that leave each node.
    leaving: Vec<Vec<usize>>,
}

const FAR: i64 = i64::MAX / 2;

impl Network {
    pub(super) fn new(nodes: usize) -> Network {
        Network { edges: Vec::new(), leaving: vec![Vec::new(); nodes] }
    }

    /// Adds an edge that carries at most `room` at `cost` each; its number.
    pub(super) fn edge(&mut self, from: usize, to: usize, room: u64, cost: i64) -> usize {
        let number = self.edges.len();
        self.leaving[from].push(number);
        self.leaving[to].push(number + 1);
        self.edges.push(Edge { to, room, cost });
        self.edges.push(Edge { to: from, room: 0, cost: -cost });
        number
    }

    /// What edge `number` carries.
    pub(super) fn carried(&self, number: usize) -> u64 {
        self.edges[number ^ 1].room
    }

    /// Sends as much as possible from `source` to `sink`, as cheaply as possible; how much.
    pub(super) fn send(&mut self, source: usize, sink: usize) -> u64 {
        let mut sent = 0;
        loop {
            let distance = self.distances(source);
            if distance[sink] == FAR {
                return sent;
            }
            let mut search =
                Search { distance, on_path: vec![false; self.leaving.len()], next: vec![0; self.leaving.len()] };
            loop {
                let more = self.augment(source, sink, &mut search);
                if more == 0 {
                    break;
                }
                sent += more;
            }
        }
    }

    fn distances(&self, source: usize) -> Vec<i64> {
        let mut distance = vec![FAR; self.leaving.len()];
        let mut queued = vec![false; self.leaving.len()];
        let mut queue = VecDeque::from([source]);
        distance[source] = 0;
        while let Some(node) = queue.pop_front() {
            queued[node] = false;
            for number in &self.leaving[node] {
                let edge = &self.edges[*number];
                let reached = distance[node] + edge.cost;
                if edge.room > 0 && reached < distance[edge.to] {
                    distance[edge.to] = reached;
                    if !queued[edge.to] {
                        queued[edge.to] = true;
                        queue.push_back(edge.to);
                    }
                }
            }
        }
        distance
    }

    /// Sends what one shortest path can carry; 0 if none is left. A node whose edges have all been tried is not entered
    /// again, except that a circle of cost 0 may have hidden one: then the next round finds it.
    fn augment(&mut self, source: usize, sink: usize, search: &mut Search) -> u64 {
        let mut path: Vec<usize> = Vec::new();
        let mut node = source;
        search.on_path[source] = true;
        while node != sink {
            let Some(number) = self.leaving[node].get(search.next[node]).copied() else {
                search.on_path[node] = false;
                let Some(last) = path.pop() else { return 0 };
                node = self.edges[last ^ 1].to;
                search.next[node] += 1;
                continue;
            };
            let edge = &self.edges[number];
            let shortest = search.distance[node] + edge.cost == search.distance[edge.to];
            if edge.room > 0 && shortest && !search.on_path[edge.to] {
                path.push(number);
                node = edge.to;
                search.on_path[node] = true;
            } else {
                search.next[node] += 1;
            }
        }
        let carried = path.iter().map(|number| self.edges[*number].room).min().expect("source and sink differ");
        for number in path {
            search.on_path[self.edges[number].to] = false;
            self.edges[number].room -= carried;
            self.edges[number ^ 1].room += carried;
        }
        carried
    }
}

struct Search {
    distance: Vec<i64>,
    on_path: Vec<bool>,
    /// First edge of each node that has not been tried in vain.
    next: Vec<usize>,
}
