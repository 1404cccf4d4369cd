"""From raw videos to a manifest of scenes that are like chosen data sets: cut, embed, cluster, retrieve."""
