"""The dispatcher publishes the jobs that are due according to the database. One runs in every
worker, and one of them leads.

    dispatcher.py             the tick: lead, rescue, publish, and when to do so next
    leader.py                 which of the workers' dispatchers acts
    rescuer.py                requeues jobs that died or were lost, and ends overdue ones
    backlog.py                which jobs are published now, and in which messages
    queue_target.py           how many jobs may be out, and how soon more are needed: arithmetic
    notification_listener.py  wakes the tick when a batch was submitted
    nightly_pass.py           prunes expired rows and submits canaries once a night
    broker.py                 the length of a queue, and whether Redis lost its data

# What must hold, and what need not

A job that is due is published, whatever has died, and a job that is published twice runs once. The
second does not depend on the dispatcher. A message carries ids, and the claim behind it is one
conditional UPDATE: of two messages for one job the first to arrive claims it, and the second finds
nothing to do. So every step here errs towards publishing again, and **leadership saves work, but
safety does not depend on it**: two leaders at once cost messages, and no leader for a while costs
time.

# Terms

A *leadership* is a row: the leader, and the end of its term. Only the database's clock sets and
judges terms, so workers' clocks may differ.

- A worker takes the row if there is none, or if its term is over.
- The leader keeps it by writing it again. A term is `lead_seconds` (10 s) long.
- A leader that stops, or cannot reach the broker, *resigns*: it deletes the row, and the next
  worker to tick takes over at once. A leader that dies leaves the row, and the next one waits for
  the end of its term. So does the successor of a leader that cannot reach the database.

# The trust window

Keeping a leadership takes a write and a sync, and ticks come up to twenty times a second. So a
leader trusts its last write, for less than the term that it wrote:

    led_at     + lead_seconds / 4    until then it does not write the row again
    polled_at  + dispatch_seconds    until then it only publishes, and does not rescue

`led_at` is read from the worker's monotonic clock *before* the statement is sent, so that its
window begins before the term does. The windows add up: a tick that only publishes may come
`dispatch_seconds` after a poll that trusted a row of `lead_seconds / 4`. Settings require `2 *
dispatch_seconds <= lead_seconds`, which leaves a quarter of a term for the tick itself.

A process that is stopped in the middle of a tick (SIGSTOP, a virtual machine that moves) may
continue after its term as a second leader. The guards below make that harmless.

# The guards

Each keeps one thing true when there are two leaders, or a death between two statements.

- *Publish first, then mark.* A death between the two leaves jobs that are published again. The
  other order would leave jobs that are marked but in no queue, until they count as lost.
- *An expired lease is judged within the UPDATE* that requeues its job. A worker that was only slow,
  and renewed in time, keeps its job; otherwise the next attempt's number fences it off.
- *A deadline is judged within its UPDATE* too: of two leaders one ends the job.
- *The marker in Redis is set only if it is absent*, in one command: of two leaders one learns
  that Redis lost its data and publishes everything again.
- *A queue is called lost only when it is empty* and it has jobs that were published
  `lost_seconds` ago and are not claimed. A message that a worker has prefetched but not claimed
  looks the same; its job is published twice.
- *A submitter has two seconds* to publish its own interactive job before the dispatcher does.
- *Targets count the jobs that are out*, published or running, in the database and not in Redis, so
  that two leaders, or one that has just taken over, do not fill the queues twice.
- *No tick follows another within 50 ms*, however many notifications arrive.
"""
