"""Datasets as code: records become tar shards, shards become batches. Knows nothing of models.

a dataset     records (Record, Source, StoreSettings) · shapes/ webvid openvid ucf101 msrvtt activitynet (sources)
              tables (their csv files) · video_files (by name, below a folder) · timed_plans (of sentences with times)
writing       prepare (the command) · building (splits, resuming) · storing (a record to bytes) · pool · notes
on disk       tar (members, safety) · shards (index) · check (are they there, do they fit) · shard_cache (remote ones)
reading       plan (the order) · reader · samples (a member to a clip) · decode · plain_mp4 · quarantine
batches       batches · workers (processes) · loader (cursor) · module (what training sees)
"""
