"""A Franka Panda with a Robotiq 2F-85 gripper at a table with a box, a cup and a plate, simulated by MuJoCo.

The same states, actions, tasks, policies, cameras and nuisances as the table-top of `jepa_jax.sim`, with joints, contacts
and friction instead of its shortcuts: objects slip, topple and are pushed. `world.PandaWorld` is one simulated robot,
`rendering.Pictures` draws what cameras see, `rollouts` has the scripted policies act, and `collect --world panda`
writes trajectory shards. Needs the extra 'sim' (`installed`); nothing of it is imported before it is used.
"""
