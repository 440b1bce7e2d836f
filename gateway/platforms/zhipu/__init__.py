"""智谱清言 (Zhipu): models, glms and applications."""
