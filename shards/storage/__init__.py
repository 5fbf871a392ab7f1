"""Files of shard sets wherever they are: folders, S3, Google Cloud, Azure and HTTP.

- `protocols`: one table of the protocols, and fsspec's file system for a URL.
- `retry`: one rule for what is tried again, and when.
- `remote_folder`: reading the files of a folder at a URL.
- `cache`: whole, checked copies of such files on a disk of this machine.
- `store`: writing a set into a folder or an object store.

Credentials, endpoints and proxies are configured where fsspec and its packages look for them. None of them gets into a
message.
"""
