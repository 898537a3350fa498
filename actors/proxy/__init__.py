"""The proxy: etcd's v3 API, served by a client of the cluster."""
