//! Every order in which clients come while owners leave, are killed and start.
//!
//! The world is small: three clients, each of which wants one answer, and three processes that may own the pool. The
//! steps are those of `owner.rs`, `store.rs` and `place.rs`, one system call or one locked decision each; the door is
//! the real one. From every state that can be reached, every step that is possible is tried.

use std::collections::{HashMap, HashSet, VecDeque};

use kiln_store::DoorState;

const CLIENTS: usize = 3;
const OWNERS: usize = 3;

/// What an owner's process is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Owner {
    /// Started when a client wants it.
    Absent,
    /// Tries to take the lock.
    Starting,
    /// Has the lock; removes what lies in its socket's place.
    Locked,
    /// Its socket is bound, and nobody can connect yet.
    Bound,
    /// Lets clients in.
    Open(DoorState),
    /// The door is closed; the socket's path is still there.
    Closed(DoorState),
    /// The path is gone, and the lock is still held.
    Unlinked(DoorState),
}

/// What a client is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Client {
    /// Looks for an owner.
    Looking,
    /// Found none, and starts one.
    Calling,
    /// Connected to a process, not let in yet.
    Waiting(usize),
    /// Let in and greeted.
    Inside(usize),
    /// Has its answer.
    Done,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct World {
    owners: [Owner; OWNERS],
    clients: [Client; CLIENTS],
    /// Who has the pool's lock.
    lock: Option<usize>,
    /// Whose socket the path leads to; a dead process's is refused.
    path: Option<usize>,
    /// Kills that may still happen.
    kills: u8,
}

impl World {
    fn first() -> World {
        World {
            owners: [Owner::Absent; OWNERS],
            clients: [Client::Looking; CLIENTS],
            lock: None,
            path: None,
            kills: 2,
        }
    }

    fn listens(&self, owner: usize) -> bool {
        matches!(self.owners[owner], Owner::Open(_) | Owner::Closed(_) | Owner::Unlinked(_))
    }

    /// Whoever waited for a process that is gone is hung up on, and looks again.
    fn hang_up(&mut self, owner: usize) {
        for client in &mut self.clients {
            if matches!(*client, Client::Waiting(of) | Client::Inside(of) if of == owner) {
                *client = Client::Looking;
            }
        }
    }

    fn with(&self, change: impl FnOnce(&mut World)) -> World {
        let mut world = self.clone();
        change(&mut world);
        world
    }

    fn next(&self) -> Vec<World> {
        let mut all = Vec::new();
        for at in 0..OWNERS {
            self.steps_of_owner(at, &mut all);
        }
        for at in 0..CLIENTS {
            self.steps_of_client(at, &mut all);
        }
        all
    }

    fn steps_of_owner(&self, at: usize, all: &mut Vec<World>) {
        let owner = self.owners[at];
        if self.kills > 0 && owner != Owner::Absent {
            all.push(self.with(|world| {
                world.kills -= 1;
                world.owners[at] = Owner::Absent;
                // The kernel's: the lock goes with the process, the path stays.
                if world.lock == Some(at) {
                    world.lock = None;
                }
                world.hang_up(at);
            }));
        }
        match owner {
            Owner::Absent => {}
            Owner::Starting if self.lock.is_none() => all.push(self.with(|world| {
                world.lock = Some(at);
                world.owners[at] = Owner::Locked;
            })),
            // Another has the lock. If it answers, this one is not needed.
            Owner::Starting => {
                let answers = self.path.is_some_and(|of| self.listens(of));
                if answers {
                    all.push(self.with(|world| world.owners[at] = Owner::Absent));
                }
            }
            Owner::Locked => all.push(self.with(|world| {
                if let Some(of) = world.path {
                    assert!(of == at || !world.listens(of), "a living owner's socket is removed");
                }
                world.path = Some(at);
                world.owners[at] = Owner::Bound;
            })),
            Owner::Bound => all.push(self.with(|world| {
                world.owners[at] = Owner::Open(DoorState::default());
            })),
            Owner::Open(door) => {
                let mut closed = door;
                if closed.close_if_at_most(0) {
                    all.push(self.with(|world| world.owners[at] = Owner::Closed(closed)));
                }
            }
            Owner::Closed(door) => all.push(self.with(|world| {
                // Only its own: nobody else has bound there, for it has the lock.
                assert_eq!(world.path, Some(at), "another owner's socket is removed");
                world.path = None;
                world.owners[at] = Owner::Unlinked(door);
            })),
            Owner::Unlinked(door) => {
                assert_eq!(door.inside(), 0, "an owner leaves with somebody inside");
                all.push(self.with(|world| {
                    world.owners[at] = Owner::Absent;
                    world.lock = None;
                    world.hang_up(at);
                }));
            }
        }
    }

    fn steps_of_client(&self, at: usize, all: &mut Vec<World>) {
        match self.clients[at] {
            Client::Looking => all.push(self.with(|world| {
                world.clients[at] = match world.path {
                    Some(of) if world.listens(of) => Client::Waiting(of),
                    _ => Client::Calling,
                };
            })),
            Client::Calling => {
                // Of processes there are as many as are wanted; here, as fit.
                match self.owners.iter().position(|owner| *owner == Owner::Absent) {
                    Some(free) => all.push(self.with(|world| {
                        world.owners[free] = Owner::Starting;
                        world.clients[at] = Client::Looking;
                    })),
                    None => all.push(self.with(|world| world.clients[at] = Client::Looking)),
                }
            }
            // By an owner that has closed its door it is hung up on, when that is through.
            Client::Waiting(of) => {
                if let Owner::Open(mut door) = self.owners[of] {
                    let entered = door.enter();
                    all.push(self.with(|world| {
                        world.owners[of] = Owner::Open(door);
                        world.clients[at] =
                            if entered { Client::Inside(of) } else { Client::Looking };
                    }));
                }
            }
            Client::Inside(of) => {
                let Owner::Open(mut door) = self.owners[of] else {
                    panic!("who was let in finds nobody: {self:?}")
                };
                door.leave();
                all.push(self.with(|world| {
                    world.owners[of] = Owner::Open(door);
                    world.clients[at] = Client::Done;
                }));
            }
            Client::Done => {}
        }
    }

    fn check(&self) {
        let owning =
            (0..OWNERS).filter(|at| !matches!(self.owners[*at], Owner::Absent | Owner::Starting));
        let owning: Vec<usize> = owning.collect();
        assert!(owning.len() <= 1, "two have the pool open: {self:?}");
        assert_eq!(owning.first().copied(), self.lock, "{self:?}");
    }
}

#[test]
fn in_every_order_clients_are_served_by_one_owner_that_stays_while_they_are_inside() {
    let mut seen: HashMap<World, Vec<World>> = HashMap::new();
    let mut todo = VecDeque::from([World::first()]);
    while let Some(world) = todo.pop_front() {
        if seen.contains_key(&world) {
            continue;
        }
        world.check();
        let next = world.next();
        todo.extend(next.iter().cloned());
        seen.insert(world, next);
    }
    assert!(seen.len() > 1000, "the world is too small: {}", seen.len());
    // From everywhere, all clients can still get their answers, and everybody be gone.
    let done = |world: &World| {
        world.clients == [Client::Done; CLIENTS] && world.owners == [Owner::Absent; OWNERS]
    };
    let mut before: HashMap<&World, Vec<&World>> = HashMap::new();
    for (world, next) in &seen {
        for next in next {
            before.entry(next).or_default().push(world);
        }
    }
    let mut good: HashSet<&World> = seen.keys().filter(|world| done(world)).collect();
    let mut todo: VecDeque<&World> = good.iter().copied().collect();
    while let Some(world) = todo.pop_front() {
        for earlier in before.get(world).into_iter().flatten() {
            if good.insert(earlier) {
                todo.push_back(earlier);
            }
        }
    }
    let stuck = seen.keys().find(|world| !good.contains(world));
    assert_eq!(stuck, None, "somebody waits for ever");
}
